"""Wan VACE."""

from __future__ import annotations

from tiny.builder import Tiny, pipeline_of, tiny_family
from tiny.parts import WAN, WAN_CALL, WAN_RESIZED, flow_scheduler, two_prompts, wan_vae


@tiny_family(resized=WAN_RESIZED, resized_tokens=3 * 4 * 7)
def wan_vace() -> Tiny:
    """`WanVACEPipeline`: side blocks whose hints go to three of four blocks, the last included."""
    from diffusers import WanVACEPipeline, WanVACETransformer3DModel

    call = {**two_prompts(), **WAN_CALL, "conditioning_scale": [1.0, 0.5, 0.8]}
    transformer = WanVACETransformer3DModel(**WAN, vace_layers=[0, 2, 3], vace_in_channels=72)
    pipe = pipeline_of(
        WanVACEPipeline, vae=wan_vae(), scheduler=flow_scheduler(), transformer=transformer
    )
    return pipe, call
