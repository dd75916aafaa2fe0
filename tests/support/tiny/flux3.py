"""Flux 3, also with a reference image, and distilled."""

from __future__ import annotations

from typing import Any

import torch

from tiny.builder import Tiny, embeds_source, modular_of, tiny_family
from tiny.parts import SMALL, SQUARE


def _flux3(blocks: Any, flow_map: bool = False, **parts: Any) -> Tiny:
    """A modular pipeline at 11 x 11 tokens and 6 of text in front."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux3Transformer2DModel

    embeds = embeds_source()
    transformer = Flux3Transformer2DModel(
        in_channels=16,
        cond_in_channels=16,
        num_layers=1,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        flow_map=flow_map,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.93)
    pipe = modular_of(blocks, transformer=transformer, scheduler=scheduler, **parts)
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        **({} if flow_map else {"negative_prompt_embeds": embeds(1, 6, 16)}),
        **SQUARE,
        "num_inference_steps": 7,
        "output": "latents",
    }


def _guided(blocks: Any) -> Tiny:
    from diffusers import ClassifierFreeGuidance

    return _flux3(blocks, guider=ClassifierFreeGuidance(guidance_scale=3.5))


@tiny_family(resized=SMALL, resized_tokens=5 * 3)
def flux3() -> Tiny:
    """Text to image, guidance in two calls."""
    from diffusers.modular_pipelines.flux3.modular_blocks_flux3 import Flux3CoreDenoiseStep

    return _guided(Flux3CoreDenoiseStep())


@tiny_family(variant=True, tokens=121 + 5 * 3, steps=7)
def flux3_reference() -> Tiny:
    """5 x 3 tokens of a reference image behind those of the image that is made."""
    from diffusers.modular_pipelines.flux3.modular_blocks_flux3 import (
        Flux3ImageConditionedCoreDenoiseStep,
    )

    pipe, call = _guided(Flux3ImageConditionedCoreDenoiseStep())
    image = torch.randn(1, 16, 5, 3, generator=torch.Generator().manual_seed(3))
    return pipe, {**call, "image_cond_latents": [image]}


@tiny_family(variant=True, tokens=121, steps=7)
def flux3_distilled() -> Tiny:
    """A flow map: each call is told where its step leads to."""
    from diffusers.modular_pipelines.flux3.modular_blocks_flux3_distilled import (
        Flux3DistilledCoreDenoiseStep,
    )

    return _flux3(Flux3DistilledCoreDenoiseStep(), flow_map=True)
