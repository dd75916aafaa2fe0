"""AuraFlow."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE


@tiny_family(dispatches=False, resized=SMALL, resized_tokens=5 * 3)
def aura_flow() -> Tiny:
    """`AuraFlowPipeline`: joint blocks, then single ones on `[registers, text, image]`, batched."""
    from diffusers import (
        AuraFlowPipeline,
        AuraFlowTransformer2DModel,
        FlowMatchEulerDiscreteScheduler,
    )

    embeds = embeds_source()
    transformer = AuraFlowTransformer2DModel(
        sample_size=22,
        in_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=256,
    )
    pipe = pipeline_of(
        AuraFlowPipeline,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        **SQUARE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
