"""Lumina-Next."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, filled, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE


@tiny_family(dispatches=False, resized=SMALL, resized_tokens=5 * 3)
def lumina_next() -> Tiny:
    """`LuminaPipeline` at 11 x 11 tokens: timesteps that rise, a variance beside the noise."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LuminaNextDiT2DModel, LuminaPipeline

    embeds = embeds_source()
    transformer = LuminaNextDiT2DModel(
        sample_size=22,
        hidden_size=32,
        num_layers=4,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=16,
    )
    with torch.no_grad():
        transformer.pad_token.zero_()  # diffusers leaves it empty, and never uses it
    filled(transformer)
    pipe = pipeline_of(LuminaPipeline, transformer, FlowMatchEulerDiscreteScheduler())
    return pipe, {
        "prompt_embeds": embeds(1, 8, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 8, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]]),
        "clean_caption": False,
        **SQUARE,
        "num_inference_steps": 7,
        "output_type": "latent",
    }
