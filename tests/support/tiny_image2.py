"""More tiny random pipelines: text and image in one sequence, linear attention, audio."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from tiny_registry import Tiny, embeds_source, quiet, tiny_family

# 11 x 11 tokens, and 5 x 3
_SIZE = {"height": 176, "width": 176}
_OTHER = {"height": 80, "width": 48}


@tiny_family(resized=_OTHER, resized_tokens=32)
def z_image() -> Tiny:
    """`ZImagePipeline`: latents as a list, timesteps that rise, a schedule that ends at 0."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    embeds = embeds_source()
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=4,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[128, 16, 16],
    )
    with torch.no_grad():  # diffusers leaves them empty
        transformer.x_pad_token.normal_()
        transformer.cap_pad_token.normal_()
    pipe = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )
    return quiet(pipe), {
        "prompt_embeds": [embeds(6, 16)],
        "negative_prompt_embeds": [embeds(4, 16)],
        **_SIZE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(dispatches=False, resized=_OTHER, resized_tokens=11 * 11)
def hidream() -> Tiny:
    """`HiDreamImagePipeline`: experts, text tokens of their own in each block, padded latents."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        HiDreamImagePipeline,
        HiDreamImageTransformer2DModel,
    )

    embeds = embeds_source()
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[16, 16],
        text_emb_dim=16,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 6, 6),
        max_resolution=(22, 22),
        llama_layers=[0, 1, 2, 3],
    )
    parts = [f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3", "_4")]
    pipe = HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=None,
        transformer=transformer,
        **dict.fromkeys(parts),
    )
    pipe.default_sample_size = 22  # sizes are scaled up to it
    return quiet(pipe), {
        "prompt_embeds_t5": embeds(1, 6, 16),
        "prompt_embeds_llama3": embeds(4, 1, 6, 16),
        "pooled_prompt_embeds": embeds(1, 16),
        "negative_prompt_embeds_t5": embeds(1, 6, 16),
        "negative_prompt_embeds_llama3": embeds(4, 1, 6, 16),
        "negative_pooled_prompt_embeds": embeds(1, 16),
        **_SIZE,
        "num_inference_steps": 7,
        "output_type": "latent",
    }


@tiny_family(dispatches=False, resized=_OTHER, resized_tokens=5 * 3)
def lumina2() -> Tiny:
    """`Lumina2Pipeline`: texts of two lengths in its branches, guidance on a part of the steps."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        Lumina2Pipeline,
        Lumina2Transformer2DModel,
    )

    embeds = embeds_source()
    transformer = Lumina2Transformer2DModel(
        sample_size=22,
        in_channels=4,
        hidden_size=32,
        num_layers=4,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(32, 16, 16),
        cap_feat_dim=16,
    )
    pipe = Lumina2Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 8, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 8, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]]),
        "cfg_trunc_ratio": 0.8,
        **_SIZE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(resized={"height": 160, "width": 96}, resized_tokens=5 * 3)
def sana() -> Tiny:
    """`SanaPipeline`: linear self-attention, text by cross-attention, guidance batched."""
    from diffusers import DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    embeds = embeds_source()
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=16,
        sample_size=11,
        patch_size=1,
    )
    pipe = SanaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        "negative_prompt": None,
        "use_resolution_binning": False,
        "height": 352,
        "width": 352,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(masked=True, resized={"height": 192, "width": 128}, resized_tokens=6 * 4)
def hunyuan_image() -> Tiny:
    """`HunyuanImagePipeline`: a guider calls the transformer, text behind with padding.

    Without the second text encoder's projection, whose fixed width would be most of the model.
    """
    from diffusers import (
        AdaptiveProjectedMixGuidance,
        FlowMatchEulerDiscreteScheduler,
        HunyuanImagePipeline,
        HunyuanImageTransformer2DModel,
    )

    embeds = embeds_source()
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        rope_axes_dim=(8, 8),
    )
    guiders = [AdaptiveProjectedMixGuidance(guidance_scale=3.0) for _ in range(2)]
    pipe = HunyuanImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
        guider=guiders[0],
        ocr_guider=guiders[1],
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds_mask": torch.tensor([[1, 1, 1, 0, 0, 0]]),
        "prompt_embeds_2": embeds(1, 4, 16),
        "prompt_embeds_mask_2": torch.tensor([[1, 1, 0, 0]]),
        "negative_prompt_embeds_2": embeds(1, 4, 16),
        "negative_prompt_embeds_mask_2": torch.tensor([[1, 1, 1, 0]]),
        "height": 384,
        "width": 384,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


class WordsAsNumbers:
    """In place of OmniGen's processor, which needs torchvision: a token for each word."""

    max_image_size = 1024

    def __init__(self, tokenizer: Any, max_image_size: int = 1024) -> None:
        from diffusers.pipelines.omnigen.processor_omnigen import OmniGenCollator

        self._collate = OmniGenCollator()

    def __call__(
        self, prompts: list[str], images: Any, height: int, width: int, **kwargs: Any
    ) -> dict[str, Any]:
        def tokens(text: str) -> dict[str, Any]:
            ids = [3 + sum(map(ord, word)) % 60 for word in text.split()]
            return {"input_ids": ids, "pixel_values": None, "image_sizes": None}

        parts = [(tokens(p), tokens("low quality"), None, [height, width]) for p in prompts]
        return self._collate(parts)


@tiny_family(resized=_OTHER, resized_tokens=5 * 3)
def omnigen() -> Tiny:
    """`OmniGenPipeline`: text that is causal, timesteps that rise from 0 to 1, guidance batched."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        OmniGenPipeline,
        OmniGenTransformer2DModel,
    )

    embeds_source()
    transformer = OmniGenTransformer2DModel(
        in_channels=4,
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        num_layers=4,
        pad_token_id=2,
        vocab_size=64,
        rope_scaling={"short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
        pos_embed_max_size=16,
        time_step_dim=16,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
    )
    processor = "diffusers.pipelines.omnigen.pipeline_omnigen.OmniGenMultiModalProcessor"
    with mock.patch(processor, WordsAsNumbers, create=True):
        pipe = OmniGenPipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
            vae=vae,
            tokenizer=None,
        )
    return quiet(pipe), {
        "prompt": "a red circle over a square",
        **_SIZE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(dispatches=False, resized_tokens=121)
def stable_audio() -> Tiny:
    """`StableAudioPipeline`: 121 audio tokens behind a global one, grouped heads, batched."""
    from diffusers import (
        AutoencoderOobleck,
        EDMDPMSolverMultistepScheduler,
        StableAudioDiTModel,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )

    embeds = embeds_source()
    transformer = StableAudioDiTModel(
        sample_size=121,
        in_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        out_channels=4,
        cross_attention_dim=16,
        time_proj_dim=16,
        global_states_input_dim=32,
        cross_attention_input_dim=16,
    )
    with torch.no_grad():  # else its normalized weights cannot be copied
        vae = AutoencoderOobleck(
            encoder_hidden_size=4,
            downsampling_ratios=[2, 2],
            channel_multiples=[1, 2],
            decoder_channels=4,
            decoder_input_channels=4,
            audio_channels=2,
            sampling_rate=4,
        )
    pipe = StableAudioPipeline(
        vae=vae,
        text_encoder=None,
        projection_model=StableAudioProjectionModel(16, 16, 0, 512),
        tokenizer=None,
        transformer=transformer,
        scheduler=EDMDPMSolverMultistepScheduler(
            sigma_min=0.3, sigma_max=500, prediction_type="v_prediction"
        ),
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(dispatches=False, resized=_OTHER, resized_tokens=5 * 3)
def hunyuan_dit() -> Tiny:
    """`HunyuanDiTPipeline`: later blocks take up what earlier ones gave; guidance batched."""
    from diffusers import DDIMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline

    embeds = embeds_source()
    transformer = HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        sample_size=22,
        hidden_size=32,
        num_layers=4,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=16,
        text_len=6,
        text_len_t5=4,
        use_style_cond_and_image_meta_size=False,
    )
    pipe = HunyuanDiTPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        scheduler=DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    prompts = {}
    for branch in ("", "negative_"):
        for encoder, length in (("", 6), ("_2", 4)):
            prompts[f"{branch}prompt_embeds{encoder}"] = embeds(1, length, 16)
            mask = torch.arange(length)[None] < length - 1
            prompts[f"{branch}prompt_attention_mask{encoder}"] = mask.long()
    return quiet(pipe), {
        **prompts,
        "use_resolution_binning": False,
        **_SIZE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
