"""diffusers' SeaCache."""

from __future__ import annotations

from typing import Any

from ditaccel.core.transformers import denoisers_of
from ditaccel.errors import UnsupportedError

from .base import Peer, Situation, register
from .diffusers_hooks import enable


def seacache(pipe: Any, options: dict[str, Any], situation: Situation, _: Any) -> None:
    """SeaCache: accumulate the spectrally filtered input change until a threshold."""
    from diffusers import SeaCacheConfig
    from diffusers.hooks import apply_sea_cache

    for transformer in denoisers_of(pipe).values():
        if not type(transformer).__name__.startswith(("Wan", "Cosmos3")):
            raise UnsupportedError(
                f"peer/seacache caches nothing on {type(transformer).__name__}: it needs the sigma "
                "that only the Wan and Cosmos3 pipelines hand over"
            )
    config = SeaCacheConfig(
        threshold=options["threshold"],
        residual_order=options["order"],
        max_consecutive_cached=options["max_skip"],
    )
    enable(pipe, situation, lambda *_: config, apply_sea_cache)


register(
    Peer(
        name="seacache",
        note="diffusers; made for Wan and Cosmos, elsewhere it caches nothing",
        options={"threshold": 0.25, "order": 1, "max_skip": 2},
        apply=seacache,
    )
)
