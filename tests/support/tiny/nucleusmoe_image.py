"""Nucleus-Image."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE


@tiny_family(resized=SMALL, resized_tokens=5 * 3)
def nucleusmoe_image() -> Tiny:
    """`NucleusMoEImagePipeline` at 11 x 11 tokens: 3 of its 5 layers choose among 4 experts."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        NucleusMoEImagePipeline,
        NucleusMoEImageTransformer2DModel,
    )

    embeds = embeds_source()
    transformer = NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
        mlp_ratio=6.0,
        dense_moe_strategy="leave_first_block_dense",
        num_experts=4,
        moe_intermediate_dim=16,
        capacity_factors=2.0,
    )
    with torch.no_grad():  # diffusers leaves them empty
        for name, weight in transformer.named_parameters():
            if ".experts." in name:
                weight.normal_(std=0.2)
    pipe = pipeline_of(NucleusMoEImagePipeline, transformer, FlowMatchEulerDiscreteScheduler())
    return pipe, {
        "prompt_embeds": embeds(1, 8, 16),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]).bool(),
        "negative_prompt_embeds": embeds(1, 8, 16),
        "negative_prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]]).bool(),
        **SQUARE,
        "num_inference_steps": 7,
        "output_type": "latent",
    }
