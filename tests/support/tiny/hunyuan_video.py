"""HunyuanVideo, text and image to video."""

from __future__ import annotations

from typing import Any

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import VIDEO, noise_frames

HUNYUAN = {
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


@tiny_family(
    masked=True,
    resized={"height": 80, "width": 48, "num_frames": 13},
    resized_tokens=4 * 5 * 3,
)
def hunyuan_video() -> Tiny:
    """`HunyuanVideoPipeline` at 2 x 7 x 9 tokens, text behind them (padding at its end)."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoPipeline,
        HunyuanVideoTransformer3DModel,
    )

    embeds = embeds_source()
    transformer = HunyuanVideoTransformer3DModel(**HUNYUAN)
    pipe = pipeline_of(
        HunyuanVideoPipeline,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
    return pipe, {
        "prompt_embeds": embeds(1, 8, 16),
        "pooled_prompt_embeds": embeds(1, 8),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 8, 16),
        "negative_pooled_prompt_embeds": embeds(1, 8),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]]),
        "true_cfg_scale": 3.0,
        "height": 112,
        "width": 144,
        "num_frames": 5,
        "num_inference_steps": 7,
        "output_type": "latent",
    }


def hunyuan_vae() -> Any:
    from diffusers import AutoencoderKLHunyuanVideo

    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
    )


def hunyuan_call(**changes: Any) -> dict[str, Any]:
    embeds = embeds_source()
    return {
        "image": noise_frames(1)[0],
        "prompt_embeds": embeds(1, 8, 16),
        "pooled_prompt_embeds": embeds(1, 8),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 8, 16),
        "negative_pooled_prompt_embeds": embeds(1, 8),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]]),
        "true_cfg_scale": 3.0,
        **VIDEO,
        "num_inference_steps": 8,
        "num_frames": 5,
        **changes,
    }


@tiny_family(variant=True, tokens=2 * 7 * 9, steps=8, masked=True)
def hunyuan_i2v() -> Tiny:
    """`HunyuanVideoImageToVideoPipeline`: the image's tokens take the place of the first frame's.

    Its blocks are classes of their own; branches are told apart by timesteps alone.
    """
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoImageToVideoPipeline,
        HunyuanVideoTransformer3DModel,
    )

    call = hunyuan_call()
    pipe = pipeline_of(
        HunyuanVideoImageToVideoPipeline,
        transformer=HunyuanVideoTransformer3DModel(**HUNYUAN, image_condition_type="token_replace"),
        vae=hunyuan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
    return pipe, call
