"""Sol-Attn: tiles above a threshold are computed, and one centroid stands for each of the others.

The scores of a mean query and all mean keys have a mean and a spread; a tile is computed where its
own lies above the mean by `tau` spreads, so that nothing is sorted and every row has as many tiles
as it needs. All others enter the same softmax as their mean key and the sum of their values, and
nothing is dropped. Neighbours along the diagonal are always computed. Paper: arXiv 2607.24027, with
code in several engines, whose settings are `published`.

Ours: a centroid also counts the spread of its tile's keys (`spread`; 2nd order of the softmax), and
`rest` may be moments, or nothing. The options that all methods share hold the rest of what engines
add: `schedule` of `tau`, `sinks` (with `sink_queries`), dense steps and layers. Not here: scores in
8 bits, and a centroid that is tested by all queries of its tile apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..config import Example, method, require
from ..kernels import TileMap, TileMoments, pool_tiles, tile_moments
from .engine.cubes import morton_order
from .engine.options import FixedTileOptions, Swept
from .engine.order import SharedOrder
from .engine.planner import LayerContext, Plan, State, TileStats
from .engine.scores import grouped_product
from .engine.tile_planner import TilePlanner

_LOG2_E = 1.4426950408889634
_PUBLISHED: dict[str, Any] = {
    "tau": 1.0,
    "spread": False,
    "dense_steps": 0.2,
    "dense_layers": 1,
    "min_tokens": 0,
    "break_even": 1.0,
}


@method("sol", paper="2607.24027")
@dataclass(frozen=True, kw_only=True)
class SolConfig(FixedTileOptions):
    """Tiles whose pooled score stands out are exact; a centroid stands for each of the others.

    Options that all methods share are described in `TileOptions`; here `rest` is `means` by
    default.

    Args:
        tau: spreads above the mean of its row from which on a tile is computed: about 16 % of the
            tiles at 1, 7 % at 1.5, 2.7 % at 2, if scores are normally distributed. Higher is
            faster. Published: 1.0; 0.8 (LightX2V), 1.3 (ComfyUI), and from 1.3 to 0.8 along the
            loop (SGLang, `schedule`).
        order: of the tokens in tiles: that of the model (`raster`), or along a Morton curve through
            frames, rows and columns (`morton`), as in LightX2V.
        neighbours: tiles on either side of the diagonal that are always computed. Published: 1.
        spread: whether centroids count the spread of their keys (ours).
        dense_layers: first layers that stay dense: a number, or a share of them below 1. Published:
            1.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": _PUBLISHED}
    swept: ClassVar[Swept] = Swept("tau", (2.0, 1.5, 1.0, 0.5, 0.0))

    tau: float = 1.0
    order: Literal["raster", "morton"] = "raster"
    neighbours: int = 1
    spread: bool = True
    dense_layers: int | float = 1
    q_tile: int = 64
    k_tile: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.neighbours >= 0, f"neighbours is {self.neighbours}; it must be 0 or more")

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        small = cls(
            q_tile=16, k_tile=16, min_tokens=0, dense_steps=0, dense_layers=0, break_even=1.0
        )
        return (Example(replace(small, tau=-1e6), replace(small, tau=0.5, neighbours=0)),)

    def planner(self) -> SolPlanner:
        """What the seam carries out."""
        return SolPlanner(self)


class SolPlanner(TilePlanner):
    """Routes the tiles again at each call; keeps nothing."""

    def __init__(self, config: SolConfig) -> None:
        super().__init__(config)
        self.rest = config.rest or "means"

    def sparse(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan:
        """See `TilePlanner`."""
        places = self._order(context, q.device)
        order, mask = None, context.key_mask
        if places is not None:
            order = SharedOrder(*places)
            q, k, v, mask = order.queries(q), order.keys(k), order.keys(v), order.key_mask(mask)
        tilings = self.tilings(q, k, context)
        q_means, moments = pool_tiles(q, tilings[0]), tile_moments(k, v, tilings[1], mask)
        kept = routed(q_means, moments, scale, self.density_setting(context))
        kept = kept | self._diagonal(kept)
        tokens = None if places is None else places[0]
        kept = self.with_sinks(kept, context, tilings, (tokens, tokens))
        if not self.config.spread and self.rest == "means":
            moments = moments._replace(key_variance=torch.zeros_like(moments.key_variance))
        return Plan(
            TileMap.from_mask(kept, *tilings),
            "routed",
            order=order,
            rest=self.rest,
            stats=TileStats(q_means, moments),
        )

    def _order(self, context: LayerContext, device: torch.device) -> tuple[Tensor, Tensor] | None:
        grid, tokens = context.grid, context.grid_tokens
        if self.config.order == "raster" or grid is None or tokens is None:
            return None
        start = tokens[0]
        if "first_frame" in self.config.sinks and grid[0] > 1:
            grid, start = (grid[0] - 1, *grid[1:]), start + grid[1] * grid[2]
        return morton_order(grid, context.length, start, device)

    def _diagonal(self, kept: Tensor) -> Tensor:
        """Tiles next to the diagonal, bool `(Tq, Tk)`; where tiles differ in size, in tokens."""
        config, (rows, columns) = self.config, kept.shape[-2:]
        first = torch.arange(rows, device=kept.device) * config.q_tile
        last = (first + config.q_tile - 1) // config.k_tile
        column = torch.arange(columns, device=kept.device)
        after = column >= (first // config.k_tile - config.neighbours)[:, None]
        return after & (column <= (last + config.neighbours)[:, None])


def routed(q_means: Tensor, moments: TileMoments, scale: float, tau: float) -> Tensor:
    """The tiles whose mean score lies above the mean of the row by `tau` spreads.

    The spread of a row is that of the mean keys, channel by channel, seen by the mean query.

    Args:
        q_means: mean query of each query tile, `(B, H, Tq, D)`.
        moments: of the key tiles; those without keys are left out.
        scale: of the softmax.
        tau: spreads.

    Returns:
        bool `(B, H, Tq, Tk)`.
    """
    keys = moments.keys
    counted = (moments.sizes > 0).to(keys.dtype)[..., None]
    total = counted.sum(2, keepdim=True).clamp(min=1)
    mean = (keys * counted).sum(2, keepdim=True) / total
    variance = ((keys - mean).square() * counted).sum(2, keepdim=True) / total
    q_means, unit = q_means.to(keys.dtype), scale * _LOG2_E
    spread = (grouped_product(q_means.square(), variance) * unit**2 + 1e-6).sqrt()
    scores, mean_score = grouped_product(q_means, keys), grouped_product(q_means, mean)
    above = (scores - mean_score) * unit > tau * spread
    return above & (moments.sizes > 0)[:, :, None]
