"""Chroma."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE


@tiny_family(masked=True, resized=SMALL, resized_tokens=5 * 3)
def chroma() -> Tiny:
    """`ChromaPipeline`: two calls a step without a context, and a mask of `(B, 1, L, L)`."""
    from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    embeds = embeds_source()
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    pipe = pipeline_of(
        ChromaPipeline, scheduler=FlowMatchEulerDiscreteScheduler(), transformer=transformer
    )
    return pipe, {
        "prompt_embeds": embeds(1, 8, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]).bool(),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]).bool(),
        **SQUARE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
