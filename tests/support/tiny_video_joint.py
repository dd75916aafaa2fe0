"""Tiny random video pipelines beside Wan's: joint, factorized and linear attention."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from tiny_registry import Tiny, embeds_source, quiet, tiny_family

_SIZE = {"height": 112, "width": 144, "num_inference_steps": 7, "output_type": "latent"}


def _frames(count: int) -> list[Image.Image]:
    pixels = torch.rand(count, 16, 16, 3, generator=torch.Generator().manual_seed(3)) * 255
    return [Image.fromarray(frame.byte().numpy()).resize((144, 112)) for frame in pixels]


def _cogvideox(in_channels: int) -> dict[str, Any]:
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXTransformer3DModel,
    )

    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=in_channels,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=4,
        sample_width=18,
        sample_height=14,
        sample_frames=9,
        max_text_seq_length=6,
        use_rotary_positional_embeddings=True,
    )
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    return {
        "tokenizer": None,
        "text_encoder": None,
        "vae": vae,
        "transformer": transformer,
        "scheduler": CogVideoXDDIMScheduler(),
    }


@tiny_family("cogvideox", variant=True, tokens=126, steps=7)
def cogvideox_i2v() -> Tiny:
    """`CogVideoXImageToVideoPipeline`: the image as channels."""
    from diffusers import CogVideoXImageToVideoPipeline

    embeds = embeds_source()
    return quiet(CogVideoXImageToVideoPipeline(**_cogvideox(8))), {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "image": _frames(1)[0],
        **_SIZE,
        "num_frames": 5,
    }


@tiny_family("cogvideox", variant=True, tokens=126, steps=7)
def cogvideox_v2v() -> Tiny:
    """`CogVideoXVideoToVideoPipeline`: starts in the middle of the schedule."""
    from diffusers import CogVideoXVideoToVideoPipeline

    embeds = embeds_source()
    return quiet(CogVideoXVideoToVideoPipeline(**_cogvideox(4))), {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "video": _frames(5),
        **_SIZE,
        "num_inference_steps": 9,
        "strength": 0.8,
    }


@tiny_family(
    masked=True,
    resized={"height": 160, "width": 96, "num_frames": 13},
    resized_tokens=4 * 10 * 6,
)
def hunyuan_video15() -> Tiny:
    """`HunyuanVideo15Pipeline` at 2 x 7 x 9 tokens, valid text and then padding behind them."""
    from diffusers import (
        AutoencoderKLHunyuanVideo15,
        ClassifierFreeGuidance,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideo15Pipeline,
        HunyuanVideo15Transformer3DModel,
    )

    embeds = embeds_source()
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        text_embed_2_dim=8,
        image_embed_dim=8,
        rope_axes_dim=(4, 6, 6),
    )
    pipe = HunyuanVideo15Pipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=AutoencoderKLHunyuanVideo15(
            latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
        guider=ClassifierFreeGuidance(guidance_scale=3.0),
    )
    pipe.vision_num_semantic_tokens = 4
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 8, 16),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]),
        "prompt_embeds_2": embeds(1, 4, 8),
        "prompt_embeds_mask_2": torch.tensor([[1, 1, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 8, 16),
        "negative_prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]]),
        "negative_prompt_embeds_2": embeds(1, 4, 8),
        "negative_prompt_embeds_mask_2": torch.tensor([[1, 1, 1, 0]]),
        **_SIZE,
        "height": 112,
        "width": 144,
        "num_inference_steps": 8,
        "num_frames": 5,
    }


@tiny_family(
    dispatches=False,
    resized={"height": 80, "width": 48, "num_frames": 12},
    resized_tokens=3 * 5 * 3,
)
def allegro() -> Tiny:
    """`AllegroPipeline` at 2 x 7 x 9 tokens, guidance batched."""
    from diffusers import (
        AllegroPipeline,
        AllegroTransformer3DModel,
        EulerAncestralDiscreteScheduler,
    )

    embeds = embeds_source()
    transformer = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        cross_attention_dim=48,
        sample_height=14,
        sample_width=18,
        sample_frames=2,
        caption_channels=16,
    )
    pipe = AllegroPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer,
        scheduler=EulerAncestralDiscreteScheduler(),
    )
    return quiet(pipe), {
        "negative_prompt": None,
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        **_SIZE,
        "num_frames": 8,
        "clean_caption": False,
    }


@tiny_family(dispatches=False, resized={"height": 96, "width": 80}, resized_tokens=6 * 5)
def latte() -> Tiny:
    """`LattePipeline` at 4 frames of 11 x 10 tokens, guidance batched."""
    from diffusers import DDIMScheduler, LattePipeline, LatteTransformer3DModel

    embeds = embeds_source()
    transformer = LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=32,
        sample_size=22,
        patch_size=2,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=16,
        video_length=4,
    )
    pipe = LattePipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer,
        scheduler=DDIMScheduler(),
    )
    return quiet(pipe), {
        "negative_prompt": None,
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "height": 176,
        "width": 160,
        "video_length": 4,
        "guidance_scale": 3.0,
        "num_inference_steps": 7,
        "output_type": "latent",
        "clean_caption": False,
    }


@tiny_family(resized={"height": 32, "width": 64, "frames": 9}, resized_tokens=3 * 2 * 4)
def sana_video() -> Tiny:
    """`SanaVideoPipeline` at 2 x 8 x 8 tokens, linear attention, guidance batched."""
    from diffusers import (
        DPMSolverMultistepScheduler,
        SanaVideoPipeline,
        SanaVideoTransformer3DModel,
    )

    embeds = embeds_source()
    transformer = SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=16,
        mlp_ratio=2.0,
        rope_max_seq_len=32,
    )
    pipe = SanaVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )
    return quiet(pipe), {
        "negative_prompt": None,
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        **_SIZE,
        "height": 128,
        "width": 128,
        "frames": 5,
        "use_resolution_binning": False,
    }


_HUNYUAN = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "text_embed_dim": 16,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (4, 6, 6),
}


def _hunyuan_vae() -> Any:
    from diffusers import AutoencoderKLHunyuanVideo

    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
    )


def _hunyuan_call(**changes: Any) -> dict[str, Any]:
    embeds = embeds_source()
    return {
        "image": _frames(1)[0],
        "prompt_embeds": embeds(1, 8, 16),
        "pooled_prompt_embeds": embeds(1, 8),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 8, 16),
        "negative_pooled_prompt_embeds": embeds(1, 8),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]]),
        "true_cfg_scale": 3.0,
        **_SIZE,
        "num_inference_steps": 8,
        "num_frames": 5,
        **changes,
    }


@tiny_family("hunyuan_video", variant=True, tokens=2 * 7 * 9, steps=8, masked=True)
def hunyuan_i2v() -> Tiny:
    """`HunyuanVideoImageToVideoPipeline`: the image's tokens take the place of the first frame's.

    Its blocks are classes of their own; branches are told apart by timesteps alone.
    """
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoImageToVideoPipeline,
        HunyuanVideoTransformer3DModel,
    )

    call = _hunyuan_call()
    pipe = HunyuanVideoImageToVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=HunyuanVideoTransformer3DModel(
            **_HUNYUAN, image_condition_type="token_replace"
        ),
        vae=_hunyuan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
        image_processor=None,
    )
    return quiet(pipe), call


@tiny_family(resized={"height": 80, "width": 112}, resized_tokens=3 * 5 * 7)
def framepack() -> Tiny:
    """`HunyuanVideoFramepackPipeline`, one section of 3 x 6 x 6 tokens behind those of the past."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoFramepackPipeline,
        HunyuanVideoFramepackTransformer3DModel,
    )
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    call = _hunyuan_call(num_frames=9, latent_window_size=3, height=96, width=96)
    encoder = SiglipVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=16,
        patch_size=8,
    )
    pipe = HunyuanVideoFramepackPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=HunyuanVideoFramepackTransformer3DModel(
            **_HUNYUAN, has_image_proj=True, image_proj_dim=8, has_clean_x_embedder=True
        ),
        vae=_hunyuan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
        image_encoder=SiglipVisionModel(encoder),
        feature_extractor=SiglipImageProcessor(size={"height": 16, "width": 16}),
    )
    return quiet(pipe), call
