"""ChronoEdit."""

from __future__ import annotations

from tiny.builder import Tiny, pipeline_of, tiny_family
from tiny.parts import (
    WAN,
    WAN_CALL,
    clip_encoder,
    flow_scheduler,
    noise_image,
    two_prompts,
    wan_vae,
)


@tiny_family(variant=True, tokens=2 * 8 * 8, steps=8)
def chronoedit() -> Tiny:
    """`ChronoEditPipeline` at 2 x 8 x 8 tokens: guidance in two calls without a cache context."""
    from diffusers import ChronoEditPipeline, ChronoEditTransformer3DModel

    call = {**two_prompts(), **WAN_CALL, "image": noise_image(), "height": 128, "width": 128}
    pipe = pipeline_of(
        ChronoEditPipeline,
        **clip_encoder(),
        vae=wan_vae(),
        scheduler=flow_scheduler(),
        transformer=ChronoEditTransformer3DModel(
            **{**WAN, "in_channels": 12}, image_dim=20, added_kv_proj_dim=24
        ),
    )
    return pipe, call
