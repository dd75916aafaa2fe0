"""ERNIE-Image."""

from __future__ import annotations

from tiny.builder import Tiny, embeds_source, filled, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE


@tiny_family(masked=True, resized=SMALL, resized_tokens=5 * 3)
def ernie_image() -> Tiny:
    """`ErnieImagePipeline` at 11 x 11 tokens: texts of two lengths, guidance batched."""
    from diffusers import (
        ErnieImagePipeline,
        ErnieImageTransformer2DModel,
        FlowMatchEulerDiscreteScheduler,
    )

    embeds = embeds_source()
    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=4,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    filled(transformer)
    pipe = pipeline_of(ErnieImagePipeline, transformer, FlowMatchEulerDiscreteScheduler(shift=3.0))
    return pipe, {
        "prompt_embeds": [embeds(6, 16)],
        "negative_prompt_embeds": [embeds(4, 16)],
        **SQUARE,
        "num_inference_steps": 7,
        "output_type": "latent",
    }
