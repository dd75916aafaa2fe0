"""Ovis-Image."""

from __future__ import annotations

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SQUARE, like_flux


@tiny_family(variant=True, tokens=121, steps=8)
def ovis_image() -> Tiny:
    """`OvisImagePipeline`: the blocks of Flux, two branches."""
    from diffusers import FlowMatchEulerDiscreteScheduler, OvisImagePipeline

    embeds = embeds_source()
    transformer = like_flux("OvisImageTransformer2DModel", out_channels=64)
    pipe = pipeline_of(OvisImagePipeline, transformer, FlowMatchEulerDiscreteScheduler())
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt": None,
        "negative_prompt_embeds": embeds(1, 4, 16),
        **SQUARE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
