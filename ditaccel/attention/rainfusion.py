"""RainFusion: spatial, temporal and textural heads.

Spatial heads attend within a frame and to near frames: a band around the diagonal. Temporal heads
attend to their own position in all frames: a band, once tokens are ordered by position. Textural
heads attend with all queries to keys on a checkerboard. A head gets the first class, in this order,
that keeps a given share of the softmax mass of some queries, and is textural if none does. Text
attends to all, and all attend to it. Paper: arXiv 2505.21036.

The authors' code has the first two classes only, and makes the first frame dense (rows and
columns): `published:rainfusion` does that with `sinks` and `sink_queries`. Ours: one choice serves
several steps, and both bands are judged on the same queries, evenly spaced over the clip (theirs
are those of the first frame, and every few). In a picture, rows stand for frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config import Example, method, require
from .engine.boxes import grid_or_line
from .engine.head_classes import HeadClass, HeadClassPlanner, band
from .engine.options import FixedTileOptions, Swept
from .engine.planner import LayerContext

_PUBLISHED: dict[str, Any] = {
    "bandwidth": 0.2,
    "recall": 0.95,
    "refresh": 1,
    "dense_steps": 0.375,
    "q_tile": 128,
    "k_tile": 128,
    "min_tokens": 0,
    "break_even": 1.0,
}


@method("rainfusion", paper="2505.21036")
@dataclass(frozen=True, kw_only=True)
class RainFusionConfig(FixedTileOptions):
    """Heads by what they look at: near frames, one position in all frames, or a coarse picture.

    Options that all methods share are described in `TileOptions`.

    Args:
        bandwidth: half the width of the bands, as a share of the sequence, in whole tiles; they
            keep 1 - (1 - bandwidth)^2 of the attention matrix. Published: 0.2.
        recall: share of the softmax mass that a band must keep, from 0 to 1. Published: 0.95.
        stride: textural heads attend to the tokens whose row and column add up to a multiple of
            this: one in so many.
        refresh: steps that one choice of classes serves. Published: 1.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": _PUBLISHED,
        "wan": {**_PUBLISHED, "sinks": ("first_frame",), "sink_queries": True},
    }
    density_option: ClassVar[str] = "bandwidth"
    swept: ClassVar[Swept] = Swept(
        "bandwidth",
        (0.02, 0.05, 0.1, 0.2, 0.3),
        # bands of 95 % recall are wide, and every other token is half of the matrix
        {"recall": 0.4, "stride": 8},
    )

    bandwidth: float = 0.2
    recall: float = 0.95
    stride: int = 2
    refresh: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bandwidth", "recall"):
            value = getattr(self, name)
            require(0.0 <= value <= 1.0, f"{name} is {value}; it is a share, from 0 to 1")
        for name in ("stride", "refresh"):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}; it must be 1 or more")

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        tiles = cls(q_tile=16, k_tile=16, min_tokens=0, dense_steps=0, break_even=1.0)
        return (Example(replace(tiles, bandwidth=1.0), replace(tiles, bandwidth=0.1)),)

    def planner(self) -> RainFusionPlanner:
        """What the seam carries out."""
        return RainFusionPlanner(self)


class RainFusionPlanner(HeadClassPlanner):
    """Keeps which class each head has."""

    def classes(self, q: Tensor, k: Tensor, scale: float, context: LayerContext) -> list[HeadClass]:
        """See `HeadClassPlanner`: the textural class is the last."""
        tilings = self.tilings(q, k, context)
        tile = self.config.k_tile
        width = int(self.density_setting(context) * context.length) // tile * tile
        mask = band(width, *tilings)
        found = self.bands(mask, q, k, context)
        kept = checkerboard(context, self.config.stride)
        tokens = torch.argsort((~kept).long(), stable=True)
        seen = tilings[1].touched([(0, int(kept.sum()))], "cpu")[0]
        mask = seen.expand(tilings[0].tiles, -1)
        order = tokens.to(q.device), torch.argsort(tokens).to(q.device)
        return [*found, self.head_class("textural", mask, order, q, k, context)]

    def choose(
        self,
        classes: list[HeadClass],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        context: LayerContext,
    ) -> Tensor:
        """See `HeadClassPlanner`."""
        recall = self.look(classes[:-1], q, k, v, scale, context).recall
        # (all mass adds up to 1 but for rounding)
        good = torch.cat([recall >= self.config.recall - 1e-5, torch.ones_like(recall[:1]) > 0])
        return good.long().argmax(0)


def checkerboard(context: LayerContext, stride: int) -> Tensor:
    """The tokens whose frame, row and column add up to a multiple of a stride, bool `(L,)`."""
    grid, start, _ = grid_or_line(context)
    frame, row, column = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    on = (frame + row + column).flatten() % stride == 0
    kept = torch.zeros(context.length, dtype=torch.bool)
    kept[start : start + len(on)] = on
    return kept
