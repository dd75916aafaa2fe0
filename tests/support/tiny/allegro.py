"""Allegro."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import VIDEO


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
    pipe = pipeline_of(
        AllegroPipeline, transformer=transformer, scheduler=EulerAncestralDiscreteScheduler()
    )
    return pipe, {
        "negative_prompt": None,
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        **VIDEO,
        "num_frames": 8,
        "clean_caption": False,
    }
