"""diffusers' FirstBlockCache."""

from __future__ import annotations

from typing import Any

from .base import Peer, Situation, register
from .diffusers_hooks import enable


def first_block_cache(pipe: Any, options: dict[str, Any], situation: Situation, _: Any) -> None:
    """FirstBlockCache: reuse the tail's residual while the first block's changes little."""
    from diffusers import FirstBlockCacheConfig
    from diffusers.hooks import apply_first_block_cache

    config = FirstBlockCacheConfig(threshold=options["threshold"])
    enable(pipe, situation, lambda *_: config, apply_first_block_cache)


register(
    Peer(
        name="first_block_cache",
        note="diffusers",
        options={"threshold": 0.05},
        apply=first_block_cache,
    )
)
