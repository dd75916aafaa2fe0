"""CogView4."""

from __future__ import annotations

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE


@tiny_family(dispatches=False, resized=SMALL, resized_tokens=5 * 3)
def cogview4() -> Tiny:
    """`CogView4Pipeline`: two branches, whose texts have different lengths."""
    from diffusers import (
        CogView4Pipeline,
        CogView4Transformer2DModel,
        FlowMatchEulerDiscreteScheduler,
    )

    embeds = embeds_source()
    transformer = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(32, 32),
        sample_size=22,
    )
    pipe = pipeline_of(
        CogView4Pipeline,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 4, 16),
        **SQUARE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
