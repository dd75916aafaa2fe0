"""Wan 2.1 and 2.2."""

from __future__ import annotations

from typing import Any

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import (
    WAN,
    WAN_CALL,
    WAN_RESIZED,
    clip_encoder,
    flow_scheduler,
    noise_image,
    two_prompts,
    unipc_scheduler,
    wan_vae,
)


def tiny_wan(layers: int = 4, scheduler: Any = None) -> Tiny:
    """`WanPipeline` 2.1, guidance in two calls with named contexts, latents out."""
    from diffusers import WanPipeline, WanTransformer3DModel

    call = {**two_prompts(), **WAN_CALL, "height": 32, "width": 32, "num_frames": 5}
    pipe = pipeline_of(
        WanPipeline,
        scheduler=scheduler or flow_scheduler(),
        transformer=WanTransformer3DModel(**{**WAN, "num_layers": layers}),
    )
    return pipe, call


def tiny_wan22(layers: int = 4) -> Tiny:
    """`WanPipeline` 2.2: two transformers, the second below half of the noise."""
    from diffusers import WanPipeline, WanTransformer3DModel

    call = {**two_prompts(), **WAN_CALL, "height": 32, "width": 32, "num_frames": 5}
    pipe = pipeline_of(
        WanPipeline,
        scheduler=unipc_scheduler(),
        transformer=WanTransformer3DModel(**{**WAN, "num_layers": layers}),
        transformer_2=WanTransformer3DModel(**{**WAN, "num_layers": layers}),
        boundary_ratio=0.5,
    )
    return pipe, {**call, "num_inference_steps": 12}


@tiny_family(resized=WAN_RESIZED, resized_tokens=3 * 4 * 7)
def wan() -> Tiny:
    """`WanPipeline` 2.1 at 4 x 6 x 6 tokens, text by cross-attention."""
    pipe, call = tiny_wan()
    return pipe, {**call, "height": 96, "width": 96, "num_frames": 13}


@tiny_family(resized=WAN_RESIZED, resized_tokens=3 * 4 * 7)
def wan22() -> Tiny:
    """`WanPipeline` 2.2, two transformers, at 4 x 6 x 6 tokens."""
    pipe, call = tiny_wan22(layers=2)
    return pipe, {**call, "height": 96, "width": 96, "num_frames": 13, "num_inference_steps": 10}


@tiny_family(variant=True, tokens=144, steps=8)
def wan_i2v() -> Tiny:
    """`WanImageToVideoPipeline` 2.1: the image as channels and as tokens of cross-attention."""
    from diffusers import WanImageToVideoPipeline, WanTransformer3DModel

    call = {**two_prompts(), **WAN_CALL, "image": noise_image()}
    transformer = WanTransformer3DModel(
        **{**WAN, "in_channels": 12}, image_dim=20, added_kv_proj_dim=24
    )
    pipe = pipeline_of(
        WanImageToVideoPipeline,
        **clip_encoder(),
        vae=wan_vae(),
        scheduler=flow_scheduler(),
        transformer=transformer,
    )
    return pipe, call


@tiny_family(variant=True, tokens=144, steps=10)
def wan22_i2v() -> Tiny:
    """`WanImageToVideoPipeline` 2.2: two transformers, the image as channels alone."""
    from diffusers import WanImageToVideoPipeline, WanTransformer3DModel

    call = {**two_prompts(), **WAN_CALL, "image": noise_image(), "num_inference_steps": 10}
    options = {**WAN, "in_channels": 12, "num_layers": 2}
    pipe = pipeline_of(
        WanImageToVideoPipeline,
        vae=wan_vae(),
        scheduler=flow_scheduler(),
        transformer=WanTransformer3DModel(**options),
        transformer_2=WanTransformer3DModel(**options),
        boundary_ratio=0.5,
    )
    return pipe, call


@tiny_family(resized=WAN_RESIZED, resized_tokens=3 * 4 * 7)
def wan_5b() -> Tiny:
    """`WanImageToVideoPipeline` as in 2.2 TI2V-5B: a timestep for each token, 0 for the image's."""
    from diffusers import WanImageToVideoPipeline, WanTransformer3DModel

    call = {**two_prompts(), **WAN_CALL, "image": noise_image()}
    pipe = pipeline_of(
        WanImageToVideoPipeline,
        vae=wan_vae(),
        scheduler=flow_scheduler(),
        transformer=WanTransformer3DModel(**WAN),
        expand_timesteps=True,
    )
    return pipe, call


@tiny_family(variant=True, tokens=144, steps=8)
def wan_v2v() -> Tiny:
    """`WanVideoToVideoPipeline`: starts in the middle of the schedule, no cache context."""
    from diffusers import WanTransformer3DModel, WanVideoToVideoPipeline

    embeds = embeds_source()
    call = {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "video": list(torch.rand(13, 96, 96, 3).numpy()),
        **{name: value for name, value in WAN_CALL.items() if name != "num_frames"},
        "num_inference_steps": 11,
        "strength": 0.8,
    }
    pipe = pipeline_of(
        WanVideoToVideoPipeline,
        vae=wan_vae(),
        scheduler=flow_scheduler(),
        transformer=WanTransformer3DModel(**WAN),
    )
    return pipe, call
