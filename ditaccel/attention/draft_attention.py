"""DraftAttention: a draft of the attention map at low resolution chooses the tiles.

Queries and keys of small rectangles of a frame are averaged, and the softmax of the averages is a
draft of the whole map. Of all pairs of rectangles in a head, the least are left out: one threshold
per head, so rows may keep very different counts. Tokens are put in the order of the rectangles.
Paper: arXiv 2505.14708. Ours: a row keeps its largest pair at least (the authors' code may leave a
row without any), sizes that rectangles do not divide (later tiles then straddle two of them), runs
of tokens where rows and columns are not known, and options that all methods share.
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
from .engine.scores import PooledPlanner, largest

_PUBLISHED: dict[str, Any] = {"dense_steps": 0.25, "min_tokens": 0, "break_even": 1.0}


@method("draft_attention", paper="2505.14708")
@dataclass(frozen=True, kw_only=True)
class DraftAttentionConfig(TileOptions):
    """Pairs of rectangles of a frame that weigh most in a draft of the map, by head.

    Options that all methods share are described in `TileOptions`.

    Args:
        density: share of the pairs of rectangles that a head keeps, in (0, 1]. Published: 0.1, and
            0.25 for Wan.
        cell: rows and columns of a rectangle, whose tokens are a tile. Published: (8, 16).
        dense_steps: first steps that stay dense: a number, or a share of the steps below 1.
            Published: 0.25.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {**_PUBLISHED, "density": 0.1},
        "wan": {**_PUBLISHED, "density": 0.25},
    }
    swept: ClassVar[Swept] = Swept("density", (0.05, 0.1, 0.2, 0.3, 0.5))

    density: float = 0.25
    cell: tuple[int, int] = (8, 16)
    dense_steps: int | float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0.0 < self.density <= 1.0, f"density is {self.density}; give a share in (0, 1]")
        require(
            min(self.cell) >= 1 and math.prod(self.cell) >= 16,
            f"cell is {self.cell}; give rows and columns of 16 tokens or more, such as [8, 16]",
        )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        small = cls(cell=(4, 4), min_tokens=0, dense_steps=0, break_even=1.0)
        return (Example(replace(small, density=1.0), replace(small, density=0.2)),)

    def planner(self) -> DraftAttentionPlanner:
        """What the seam carries out."""
        return DraftAttentionPlanner(self)


class DraftAttentionPlanner(PooledPlanner):
    """Makes a draft of the map at each call; keeps nothing."""

    def cube(self, context: LayerContext) -> Grid:
        """See `PooledPlanner`."""
        return (1, *self.config.cell)

    def choose(self, scores: Tensor, context: LayerContext) -> Tensor:
        """See `PooledPlanner`."""
        return drafted(scores, self.density_setting(context))


def drafted(scores: Tensor, density: float) -> Tensor:
    """The tiles of each head that a draft keeps, and the largest of each row.

    Args:
        scores: scaled scores of mean queries and keys, `(B, H, Tq, Tk)`.
        density: share of a head's tiles to keep.
    """
    # (logarithms: where scores lie far apart, shares are 0 in float32)
    shares = scores.log_softmax(-1).nan_to_num(nan=-torch.inf).flatten(2)
    dropped = int((1 - density) * shares.shape[-1] + 1e-6)
    if dropped == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = shares.kthvalue(dropped, dim=-1, keepdim=True).values
    return (shares > threshold).unflatten(2, scores.shape[2:]) | largest(scores, 1)
