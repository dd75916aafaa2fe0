"""PRX, in latents and in pixels."""

from __future__ import annotations

from typing import Any

import torch

from tiny.builder import Tiny, embeds_source, filled, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE


def _prx(pipeline: str, channels: int, **call: Any) -> Tiny:
    import diffusers

    embeds = embeds_source()
    transformer = diffusers.PRXTransformer2DModel(
        in_channels=channels,
        context_in_dim=16,
        hidden_size=32,
        mlp_ratio=1.0,
        num_heads=2,
        depth=4,
        axes_dim=[8, 8],
    )
    filled(transformer)
    pipe = pipeline_of(
        getattr(diffusers, pipeline),
        transformer,
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]).bool(),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 0, 0, 0, 0]]).bool(),
        "use_resolution_binning": False,
        "num_inference_steps": 7,
        "output_type": "latent",
        **call,
    }


@tiny_family(resized=SMALL, resized_tokens=5 * 3)
def prx() -> Tiny:
    """`PRXPipeline` at 11 x 11 tokens, guidance batched."""
    return _prx("PRXPipeline", 4, **SQUARE)


@tiny_family(variant=True, tokens=121, steps=7)
def prx_pixel() -> Tiny:
    """`PRXPixelPipeline`: predicts the picture, of which the pipeline makes a velocity."""
    return _prx("PRXPixelPipeline", 3, height=22, width=22)
