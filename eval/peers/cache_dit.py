"""cache-dit's DBCache, with or without its TaylorSeer calibrator."""

from __future__ import annotations

import logging
from typing import Any

from ditaccel.core.transformers import denoisers_of
from ditaccel.errors import UnsupportedError

from ..measure.counting import blocks_of
from .base import Peer, Situation, register


def _quiet() -> None:
    # It reports each enabling at warning level, which is once per generation here.
    for name in list(logging.root.manager.loggerDict):
        if name.lower().startswith("cache_dit"):
            logging.getLogger(name).setLevel(logging.ERROR)


def cache_dit(pipe: Any, options: dict[str, Any], situation: Situation, _: Any) -> None:
    """Put DBCache on an isolated pipeline.

    Args:
        pipe: the copy; its own class takes the patch that cache-dit makes at class level.
        options: `threshold`, `fn`, `bn`, `warmup`, `max_cached`, `max_continuous`, `order`.
        situation: cache-dit tells guidance branches apart by call parity, so it must be told
            whether there are two calls per step.

    Raises:
        UnsupportedError: cache-dit does not know the pipeline, or more than two branches.
    """
    import cache_dit

    _quiet()
    if situation.branches > 2:
        raise UnsupportedError(f"cache-dit cannot follow {situation.branches} calls per step")
    blocks = options["fn"] + options["bn"]
    for transformer in denoisers_of(pipe).values():
        if blocks >= len(blocks_of(transformer)):
            raise UnsupportedError(
                f"peer/cache_dit: fn + bn = {blocks} blocks of {len(blocks_of(transformer))} are "
                "always computed: nothing is left to cache; lower fn"
            )
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=options["fn"],
        Bn_compute_blocks=options["bn"],
        residual_diff_threshold=options["threshold"],
        max_warmup_steps=options["warmup"],
        max_cached_steps=options["max_cached"],
        max_continuous_cached_steps=options["max_continuous"],
        num_inference_steps=situation.steps,
        enable_separate_cfg=situation.branches == 2,
    )
    calibrator = None
    if options["order"]:
        calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=options["order"])
    cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=calibrator)
    _quiet()


register(
    Peer(
        name="cache_dit",
        note="cache-dit's DBCache; order >= 1 adds its TaylorSeer calibrator",
        options={
            "threshold": 0.08,
            "fn": 8,
            "bn": 0,
            "warmup": 8,
            "max_cached": -1,
            "max_continuous": -1,
            "order": 0,
        },
        apply=cache_dit,
    )
)
