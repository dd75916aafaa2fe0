"""SkyReels V2, also with frames that start in turn."""

from __future__ import annotations

from typing import Any

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import WAN, WAN_CALL, WAN_RESIZED, two_prompts, unipc_scheduler, wan_vae


def _skyreels(kind: str, **options: Any) -> Any:
    import diffusers

    scheduler = unipc_scheduler()
    vae = wan_vae()
    embeds_source()  # the same weights each time
    transformer = diffusers.SkyReelsV2Transformer3DModel(**WAN, **options)
    return pipeline_of(getattr(diffusers, kind), transformer, scheduler, vae=vae)


@tiny_family(variant=True, tokens=4 * 6 * 6, steps=8)
def skyreels_v2() -> Tiny:
    """`SkyReelsV2Pipeline`: one timestep for all frames."""
    return _skyreels("SkyReelsV2Pipeline"), {**two_prompts(), **WAN_CALL}


@tiny_family(resized=WAN_RESIZED, resized_tokens=3 * 4 * 7)
def skyreels_v2_forcing() -> Tiny:
    """`SkyReelsV2DiffusionForcingPipeline`, synchronous: a timestep for each frame, all alike."""
    pipe = _skyreels("SkyReelsV2DiffusionForcingPipeline", inject_sample_info=True)
    return pipe, {**two_prompts(), **WAN_CALL, "prompt": None}


def skyreels_v2_in_turn() -> Tiny:
    """The same, asynchronous: frames start one after the other (`ar_step`)."""
    pipe = _skyreels("SkyReelsV2DiffusionForcingPipeline", inject_sample_info=True)
    return pipe, {**two_prompts(), **WAN_CALL, "prompt": None, "ar_step": 3, "causal_block_size": 1}
