"""Bria."""

from __future__ import annotations

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import flux_vae, like_flux


@tiny_family(variant=True, tokens=121, steps=8)
def bria() -> Tiny:
    """`BriaPipeline`: the blocks of Flux, guidance batched."""
    from diffusers import BriaPipeline, FlowMatchEulerDiscreteScheduler

    embeds = embeds_source()
    vae = flux_vae(16)
    transformer = like_flux("BriaTransformer2DModel")
    pipe = pipeline_of(BriaPipeline, transformer, FlowMatchEulerDiscreteScheduler(), vae=vae)
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "height": 22,
        "width": 22,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
