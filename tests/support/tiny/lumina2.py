"""Lumina 2."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE


@tiny_family(dispatches=False, resized=SMALL, resized_tokens=5 * 3)
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
    pipe = pipeline_of(
        Lumina2Pipeline,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )
    return pipe, {
        "prompt_embeds": embeds(1, 8, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 8, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]]),
        "cfg_trunc_ratio": 0.8,
        **SQUARE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
