"""Tiny random video pipelines with contracts of their own: channels last, two outputs, EDM."""

from __future__ import annotations

from typing import Any

import torch
from tiny_registry import Tiny, embeds_source, quiet, tiny_family


def _kandinsky5(**options: Any) -> Tiny:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        Kandinsky5T2VPipeline,
        Kandinsky5Transformer3DModel,
    )

    embeds = embeds_source()
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=8,
        time_dim=16,
        out_visual_dim=4,
        model_dim=32,
        ff_dim=64,
        num_text_blocks=1,
        num_visual_blocks=4,
        axes_dims=(4, 6, 6),
        **options,
    )
    for name, weight in transformer.named_parameters():
        if "modulation" in name:  # zeros until trained: blocks that do nothing
            torch.nn.init.normal_(weight, std=0.3)
    pipe = Kandinsky5T2VPipeline(
        transformer=transformer,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
    return quiet(pipe), {
        "prompt_embeds_qwen": embeds(1, 6, 16),
        "prompt_embeds_clip": embeds(1, 8),
        "prompt_cu_seqlens": torch.tensor([0, 6]),
        "negative_prompt_embeds_qwen": embeds(1, 5, 16),
        "negative_prompt_embeds_clip": embeds(1, 8),
        "negative_prompt_cu_seqlens": torch.tensor([0, 5]),
        "guidance_scale": 3.0,
        "height": 112,
        "width": 144,
        "num_frames": 5,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(
    resized={"height": 80, "width": 48, "num_frames": 13},
    resized_tokens=4 * 5 * 3,
    rounding=1e-3,  # its RoPE rounds queries and keys to bfloat16
)
def kandinsky5() -> Tiny:
    """`Kandinsky5T2VPipeline` at 2 x 7 x 9 tokens: latents have their channels last."""
    return _kandinsky5()


def kandinsky5_nabla() -> Tiny:
    """The same with NABLA: flex attention over blocks of 64 tokens."""
    pipe, call = _kandinsky5(
        attention_type="nabla",
        attention_P=0.5,
        attention_wT=1,
        attention_wH=1,
        attention_wW=1,
        attention_add_sta=True,
        attention_method="topcdf",
    )
    for block in pipe.transformer.visual_transformer_blocks:
        block.self_attention.processor._attention_backend = "flex"
    return pipe, {**call, "height": 256, "width": 128, "num_inference_steps": 5}


@tiny_family(resized={"height": 96, "width": 160, "num_frames": 17}, resized_tokens=3 * 3 * 5)
def ltx2() -> Tiny:
    """`LTX2Pipeline` at 2 x 7 x 9 tokens and 9 of sound: guidance batched, and one call more."""
    from diffusers import (
        AutoencoderKLLTX2Audio,
        AutoencoderKLLTX2Video,
        FlowMatchEulerDiscreteScheduler,
        LTX2Pipeline,
        LTX2VideoTransformer3DModel,
    )
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    embeds = embeds_source()
    transformer = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=4,
        caption_channels=16,
        perturbed_attn=True,
    )
    connectors = LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=1,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
    )
    vae = AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(4,) * 3,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 4,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1, 1, 1), num_res_blocks=1, latent_channels=2, mel_bins=8
    )
    pipe = LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        audio_vae=audio_vae,
        text_encoder=None,
        tokenizer=None,
        connectors=connectors,
        transformer=transformer,
        vocoder=None,
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]]),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1]]),
        "stg_scale": 0.0,
        "audio_stg_scale": 0.0,
        "height": 224,
        "width": 288,
        "num_frames": 9,
        "num_inference_steps": 7,
        "output_type": "latent",
    }


class _Guardrail(torch.nn.Module):
    """Stands in for the safety checker, which these pipelines insist on."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, prompt: str) -> bool:
        return True


def _cosmos(**options: Any) -> Any:
    from diffusers import CosmosTransformer3DModel

    return CosmosTransformer3DModel(
        **{"in_channels": 4, **options},
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        mlp_ratio=2.0,
        text_embed_dim=16,
        adaln_lora_dim=4,
        max_size=(8, 64, 64),
        concat_padding_mask=False,  # which would need torchvision
    )


def _cosmos_call(**changes: Any) -> dict[str, Any]:
    embeds = embeds_source()
    return {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "guidance_scale": 3.0,
        "height": 112,
        "width": 144,
        "num_frames": 9,
        "num_inference_steps": 8,
        "output_type": "latent",
        **changes,
    }


@tiny_family(resized={"height": 80, "width": 48, "num_frames": 17}, resized_tokens=3 * 5 * 3)
def cosmos() -> Tiny:
    """`CosmosTextToWorldPipeline` at 2 x 7 x 9 tokens: EDM, told apart by timesteps alone."""
    from diffusers import CosmosTextToWorldPipeline, EDMEulerScheduler

    call = _cosmos_call()
    pipe = CosmosTextToWorldPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=_cosmos(),
        vae=None,
        scheduler=EDMEulerScheduler(
            sigma_min=0.002, sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min"
        ),
        safety_checker=_Guardrail(),
    )
    return quiet(pipe), call


@tiny_family("cosmos", variant=True, tokens=7 * 18, steps=8)
def cosmos2() -> Tiny:
    """`Cosmos2TextToImagePipeline`: flow matching's scheduler, and EDM in the pipeline."""
    from diffusers import Cosmos2TextToImagePipeline, FlowMatchEulerDiscreteScheduler

    call = _cosmos_call(width=288)
    del call["num_frames"]
    pipe = Cosmos2TextToImagePipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=_cosmos(extra_pos_embed_type=None),
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=_Guardrail(),
    )
    return quiet(pipe), call


@tiny_family("cosmos", variant=True, tokens=3 * 7 * 9, steps=8)
def cosmos2_v2w() -> Tiny:
    """`Cosmos2VideoToWorldPipeline`: branches are given latents of their own, frames timesteps."""
    from diffusers import Cosmos2VideoToWorldPipeline, FlowMatchEulerDiscreteScheduler
    from tiny_video import wan_vae

    frames = torch.rand(5, 112, 144, 3, generator=torch.Generator().manual_seed(3))
    call = _cosmos_call(video=list(frames.numpy()))
    pipe = Cosmos2VideoToWorldPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=_cosmos(in_channels=5, extra_pos_embed_type=None),
        vae=wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=_Guardrail(),
    )
    return quiet(pipe), call


@tiny_family("cosmos", variant=True, tokens=3 * 7 * 9, steps=8)
def cosmos25() -> Tiny:
    """`Cosmos2_5_PredictBasePipeline`: a timestep for each frame, tiny for the given ones."""
    from diffusers import Cosmos2_5_PredictBasePipeline, UniPCMultistepScheduler
    from tiny_video import wan_vae

    video = torch.rand(5, 3, 112, 144, generator=torch.Generator().manual_seed(3))
    call = _cosmos_call(video=video[None].transpose(1, 2) * 2 - 1)
    pipe = Cosmos2_5_PredictBasePipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=_cosmos(in_channels=5, extra_pos_embed_type=None),
        vae=wan_vae(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        safety_checker=_Guardrail(),
    )
    return quiet(pipe), call


@tiny_family(
    dispatches=False,
    resized={"height": 80, "width": 48, "num_frames": 13},
    resized_tokens=4 * 5 * 3,
)
def easyanimate() -> Tiny:
    """`EasyAnimatePipeline` at 2 x 7 x 9 tokens, 6 of text in front, guidance batched."""
    from diffusers import (
        AutoencoderKLMagvit,
        EasyAnimatePipeline,
        EasyAnimateTransformer3DModel,
        FlowMatchEulerDiscreteScheduler,
    )

    embeds = embeds_source()
    transformer = EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        num_layers=4,
        mmdit_layers=4,
        time_embed_dim=8,
        text_embed_dim=16,
    )
    pipe = EasyAnimatePipeline(
        vae=AutoencoderKLMagvit(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
        ),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        "height": 112,
        "width": 144,
        "num_frames": 5,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
