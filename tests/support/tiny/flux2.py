"""Flux 2 and Klein."""

from __future__ import annotations

from typing import Any

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE, ramp


def _flux2_transformer(guidance: bool) -> Any:
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )


@tiny_family(resized=SMALL, resized_tokens=5 * 3)
def flux2() -> Tiny:
    """`Flux2Pipeline`: guidance distilled, no context; text and image fused in single blocks."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Pipeline

    embeds = embeds_source()
    pipe = pipeline_of(
        Flux2Pipeline,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=_flux2_transformer(guidance=True),
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        **SQUARE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(resized=SMALL, resized_tokens=5 * 3)
def klein() -> Tiny:
    """`Flux2KleinPipeline`: two branches, whose texts have different lengths."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
    )

    embeds = embeds_source()
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    )
    pipe = pipeline_of(
        Flux2KleinPipeline,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        transformer=_flux2_transformer(guidance=False),
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 4, 16),
        **SQUARE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(variant=True, tokens=121 + 36, steps=8)
def klein_edit() -> Tiny:
    """`Flux2KleinPipeline` with 6 x 6 tokens of a reference image behind those of the latents."""

    pipe, call = klein()
    return pipe, {**call, "image": [ramp(96)]}


def klein_kv() -> Tiny:
    """`Flux2KleinKVPipeline`: keys and values of the reference image are kept from one step on."""
    from diffusers import Flux2KleinKVPipeline

    made, call = klein()
    pipe = pipeline_of(Flux2KleinKVPipeline, **made.components)
    del call["negative_prompt_embeds"]
    return pipe, {**call, "image": [ramp(96)]}
