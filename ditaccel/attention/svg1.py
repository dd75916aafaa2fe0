"""SVG: spatial and temporal heads (Sparse VideoGen, the first one).

Some heads attend to their own frame and its neighbours: a band around the diagonal of the attention
matrix. Others attend to their own position in all frames: the same band, once tokens are ordered by
position. Which a head is, is measured on some queries: the class whose output has the smaller
squared error. Text attends to all, and all attend to it. Paper: arXiv 2502.01776.

As in the authors' code, the band keeps pairs of tokens at most L (1 - sqrt(1 - s)) apart, rounded
up to whole tiles, where s is `density` (their option is named sparsity) less what text keeps, twice
its share of the sequence. Ours: one choice serves several steps, queries are evenly spaced (theirs
are drawn from the first 10,000), heads are judged by the very map that is then run (theirs by a
band of other width), and the first frame, where it is a sink, is frame 0 in the temporal order too.
In a picture, rows stand for frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from ..config import Example, method, require
from ..kernels import Tiling
from .engine.head_classes import HeadClass, HeadClassPlanner, band
from .engine.options import FixedTileOptions, Swept
from .engine.planner import LayerContext

_PUBLISHED: dict[str, Any] = {
    "refresh": 1,
    "dense_layers": 0.03,
    "q_tile": 128,
    "k_tile": 128,
    "min_tokens": 0,
    "break_even": 1.0,
}


@method("svg1", paper="2502.01776")
@dataclass(frozen=True, kw_only=True)
class SVG1Config(FixedTileOptions):
    """Spatial heads attend to nearby frames, temporal ones to their position in all frames.

    Options that all methods share are described in `TileOptions`; the authors' sink for Wan is
    `sinks=("first_frame",)`.

    Args:
        density: share of the attention matrix that the band keeps, in (0, 1]. Published: 0.25 to
            0.3.
        refresh: steps that one choice of classes serves. Published: 1.
        dense_layers: first layers that stay dense: a number, or a share of them below 1. Published:
            0.03.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "wan": {**_PUBLISHED, "density": 0.3, "dense_steps": 0.2, "sinks": ("first_frame",)},
        "hunyuan_video": {**_PUBLISHED, "density": 0.25, "dense_steps": 0.1},
        "cogvideox": {**_PUBLISHED, "density": 0.25, "dense_steps": 0.1},
    }
    density_option: ClassVar[str] = "density"
    swept: ClassVar[Swept] = Swept("density", (0.05, 0.1, 0.2, 0.3, 0.5))

    density: float = 0.3
    refresh: int = 4
    dense_layers: int | float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0.0 < self.density <= 1.0, f"density is {self.density}; it is a share in (0, 1]")
        require(self.refresh >= 1, f"refresh is {self.refresh}; it must be 1 or more")

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        tiles = cls(
            q_tile=16, k_tile=16, min_tokens=0, dense_steps=0, dense_layers=0, break_even=1.0
        )
        return (Example(replace(tiles, density=1.0), replace(tiles, density=0.2)),)

    def planner(self) -> SVG1Planner:
        """What the seam carries out."""
        return SVG1Planner(self)


class SVG1Planner(HeadClassPlanner):
    """Keeps which class each head has."""

    def classes(self, q: Tensor, k: Tensor, scale: float, context: LayerContext) -> list[HeadClass]:
        """See `HeadClassPlanner`."""
        q_tiling, k_tiling = self.tilings(q, k, context)
        start, end = context.text or (0, 0)
        width = band_width(self.density_setting(context), context.length, end - start, k_tiling)
        mask = band(width, q_tiling, k_tiling)
        return self.bands(mask, q, k, context)

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
        return self.look(classes, q, k, v, scale, context).errors.argmin(0)


def band_width(density: float, length: int, text: int, tiling: Tiling) -> int:
    """How far apart tokens may be, rounded up to whole tiles.

    Args:
        density: share of the attention matrix that is kept, of text too.
        length: tokens L of the sequence.
        text: how many of them are text.
        tiling: of the keys.
    """
    if density >= 1:
        return length
    share = max(0.0, density - 2 * text / length)
    assert tiling.tile is not None
    tiles = length * (1 - math.sqrt(1 - share)) / tiling.tile
    return math.ceil(tiles - 1e-9) * tiling.tile  # (whole ones, but for rounding)
