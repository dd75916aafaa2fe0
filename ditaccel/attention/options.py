"""Options, checks and small decisions that several attention methods share."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from ..config import require
from ..kernels import Tiling
from .planner import Dense, LayerContext

Ranges = tuple[tuple[int, int], ...]
Backend = Literal["auto", "triton", "torch", "naive"]

# Kept share of the attention matrix above which a layer is faster dense. On a CPU a kept tile costs
# more than its part of dense attention, most at short sequences.
_BREAK_EVEN = {"cpu": 0.7}
_BREAK_EVEN_ELSEWHERE = 0.97


def check_ranges(name: str, value: Ranges) -> None:
    """Check token ranges `((start, end), …)`: ascending, end exclusive, apart from each other."""
    previous = 0
    for start, end in value:
        require(0 <= start < end, f"{name}: the range {start} to {end} is empty or negative")
        require(
            start >= previous,
            f"{name}: the range {start} to {end} overlaps the one before it, or stands before it",
        )
        previous = end


def check_within(name: str, ranges: Ranges, length: int) -> None:
    """Check that token ranges end inside of a sequence."""
    for start, end in ranges:
        require(
            end <= length,
            f"{name}: the range {start} to {end} does not fit into a sequence of {length} tokens",
        )


def whole_tiles(name: str, ranges: Ranges, tiling: Tiling, device: torch.device) -> Tensor:
    """Mark the tiles that lie inside of token ranges as a whole, bool `(1, 1, T)`."""
    check_within(name, ranges, tiling.length)
    edges = [0, *(edge for item in ranges for edge in item), tiling.length]
    rest = [pair for pair in zip(edges[::2], edges[1::2], strict=True) if pair[0] < pair[1]]
    require(bool(rest), f"{name} covers the whole sequence of {tiling.length} tokens; leave some")
    inside = ~tiling.touched(rest, "cpu", name)
    require(
        bool(inside.any()),
        f"{name} holds no whole tile of {tiling.tile} tokens, so it would skip nothing; widen it, "
        "or make tiles smaller",
    )
    return inside.to(device)


def touched_tiles(name: str, ranges: Ranges, tiling: Tiling, device: torch.device) -> Tensor:
    """Mark the tiles that token ranges touch, bool `(1, 1, T)`; one at least is left."""
    check_within(name, ranges, tiling.length)
    inside = tiling.touched(list(ranges), "cpu", name)
    require(
        not bool(inside.all()), f"{name} touches every tile of {tiling.tile} tokens; leave some"
    )
    return inside.to(device)


def check_dense(config: Any) -> None:
    """Check `dense_steps`, `dense_layers`, `min_tokens`, `break_even`."""
    for name in ("dense_steps", "dense_layers"):
        value = getattr(config, name)
        require(
            value >= 0 and (isinstance(value, int) or value < 1),
            f"{name} is {value}; give a number of {name[6:]}, or a share of them below 1",
        )
    require(config.min_tokens >= 0, f"min_tokens is {config.min_tokens}; it must be 0 or more")
    share = config.break_even
    require(
        share is None or 0.0 < share <= 1.0,
        f"break_even is {share}; give a share of the attention matrix in (0, 1], 1 for never",
    )


def break_even_of(chosen: float | None, device_type: str) -> float:
    """The kept share of the attention matrix above which sparse attention costs time.

    Args:
        chosen: by the config, None for what the kind of device is known for.
        device_type: `cpu`, `cuda`, …
    """
    return _BREAK_EVEN.get(device_type, _BREAK_EVEN_ELSEWHERE) if chosen is None else chosen


def share_of(value: int | float, total: int | None) -> int:
    """A number, or a share of `total` rounded down; a share of an unknown total counts as none."""
    if isinstance(value, int):
        return value
    return math.floor(value * total) if total else 0


def in_dense_part(config: Any, context: LayerContext) -> Dense | None:
    """The first steps and layers that a method leaves dense."""
    if context.step.index < share_of(config.dense_steps, context.step.total):
        return Dense("dense first steps")
    if in_dense_layers(config, context):
        return Dense("dense first layers")
    return None


def in_dense_layers(config: Any, context: LayerContext) -> bool:
    """Whether a method leaves this layer dense at every step."""
    return context.layer < share_of(config.dense_layers, context.layers)
