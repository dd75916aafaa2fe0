"""GLM-Image."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family


@tiny_family(variant=True, tokens=144, steps=8)
def glm_image() -> Tiny:
    """`GlmImagePipeline`: the blocks of CogView4, timesteps one below the schedule's."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        GlmImagePipeline,
        GlmImageTransformer2DModel,
    )

    embeds = embeds_source()
    transformer = GlmImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        prior_vq_quantizer_codebook_size=16,
    )
    pipe = pipeline_of(
        GlmImagePipeline,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "prior_token_ids": torch.arange(144)[None] % 16,
        "height": 192,
        "width": 192,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
