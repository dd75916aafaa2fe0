"""NABLA: tiles of a pooled map that reach a share of its softmax, and a window around each.

Tokens are put in squares of 8 x 8 of a frame, a tile each. The softmax of mean queries and keys
tells what a tile weighs; each row keeps the fewest that reach a share, and all within a window of
frames and squares. Paper: arXiv 2507.13546; diffusers has it for Kandinsky 5 and 6. Ours: sizes
that squares do not divide (later tiles then straddle two of them), runs of tokens where rows and
columns are not known (without a window), and options that all methods share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config import Example, method, require
from ..pipelines.grids import Grid
from .engine.options import Swept, TileOptions
from .engine.planner import LayerContext
from .engine.scores import PooledPlanner, smallest_set

_PUBLISHED: dict[str, Any] = {"dense_steps": 0, "min_tokens": 0, "break_even": 1.0}


@method("nabla", paper="2507.13546")
@dataclass(frozen=True, kw_only=True)
class NABLAConfig(TileOptions):
    """The fewest squares of 8 x 8 tokens that reach a share of a pooled map, and a window.

    Options that all methods share are described in `TileOptions`.

    Args:
        top_p: share of a row's weight that is kept, in (0, 1]. Published: 0.9, and 0.8 for the
            second stage of Kandinsky 6.
        window: frames, rows and columns of squares around each that are kept whatever they weigh, a
            square at distance `d` where `d <= n // 2`; () for none. Published: (11, 7, 7) for the
            second stage of Kandinsky 6; those of Kandinsky 5 are in its checkpoints.
        square: rows and columns of a square, whose tokens are a tile. Published: (8, 8).
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {**_PUBLISHED, "top_p": 0.9},
        "kandinsky6_sr": {**_PUBLISHED, "top_p": 0.8, "window": (11, 7, 7)},
    }
    swept: ClassVar[Swept] = Swept("top_p", (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9), {"window": ()})

    top_p: float = 0.9
    window: tuple[int, ...] = ()
    square: tuple[int, int] = (8, 8)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0.0 < self.top_p <= 1.0, f"top_p is {self.top_p}; give a share in (0, 1]")
        require(
            len(self.window) in (0, 3) and all(n >= 1 for n in self.window),
            f"window is {self.window}; give frames, rows and columns, such as [11, 3, 3], or []",
        )
        require(
            min(self.square) >= 1 and math.prod(self.square) >= 16,
            f"square is {self.square}; give rows and columns of 16 tokens or more, such as [8, 8]",
        )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        small = cls(square=(4, 4), min_tokens=0, dense_steps=0, break_even=1.0)
        return (Example(replace(small, top_p=1.0), replace(small, top_p=0.3)),)

    def planner(self) -> NABLAPlanner:
        """What the seam carries out."""
        return NABLAPlanner(self)


class NABLAPlanner(PooledPlanner):
    """Makes the map again at each call; keeps nothing."""

    def cube(self, context: LayerContext) -> Grid:
        """See `PooledPlanner`."""
        return (1, *self.config.square)

    def choose(self, scores: Tensor, context: LayerContext) -> Tensor:
        """See `PooledPlanner`."""
        kept = smallest_set(scores.softmax(-1).nan_to_num(nan=0.0), self.density_setting(context))
        if self.config.window and context.grid_tokens is not None:
            kept = kept | self._near(context, scores.device)
        return kept

    def _near(self, context: LayerContext, device: torch.device) -> Tensor:
        """Which tiles lie in each other's window, bool `(T, T)`, by the first token of each."""
        assert context.grid is not None
        _, rows, columns = context.grid
        tokens = self.first_tokens(context, device)
        places = (tokens // (rows * columns), tokens // columns % rows, tokens % columns)
        near = torch.ones((len(tokens),) * 2, dtype=torch.bool, device=device)
        for place, size, n in zip(places, self.cube(context), self.config.window, strict=True):
            square = place // size
            near &= (square[:, None] - square).abs() <= n // 2
        return near
