"""AdaSpa: the true weights of all tiles, searched for at a few steps and kept between them.

Which tiles matter changes little from step to step, and so does the log-sum-exp of each row. So the
weight of each tile is summed up exactly, once at the last dense step and seldom afterwards; later
searches take the log-sum-exp of the first one, which halves their work. Each row keeps as many
tiles as any other of its head, and heads whose tiles hold more of the weight keep fewer: as many
heads get half the density as get one and a half times as much. Paper: arXiv 2502.21079 (no code was
published). Ours: state per guidance branch, a search whenever the state is too old, and sizes that
tiles do not divide.

A search costs as much as dense attention's scores (and as the softmax, the first time), and holds
the scores of some query tiles at a time, never all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Example, method, require
from ..core.ranks import ALL_HEADS, HeadShare
from ..kernels import TileMap, Tiling, pack_mask, unpack_mask
from .engine.options import FixedTileOptions, Swept, share_of
from .engine.planner import LayerContext, Plan, State
from .engine.scores import grouped_product, largest
from .engine.tile_planner import TilePlanner

# Elements of the largest tensors that are held at once.
_CHUNK = 1 << 21


@method("adaspa", paper="2502.21079")
@dataclass(frozen=True, kw_only=True)
class AdaSpaConfig(FixedTileOptions):
    """The tiles that truly weigh most, searched for at a few steps; denser in heads that need it.

    Options that all methods share are described in `TileOptions`.

    Args:
        density: share of the tiles that a row keeps, in (0, 1]. Published: 0.2.
        searches: shares of the loop at which tiles are searched for again. Published: (0.6,).
        recall: share of a head's weight that its map has to hold for the head to give tiles up to
            another one. Published: 0.8.
        per_head: whether heads differ in density, by half of it; False for one density.
        dense_steps: first steps that stay dense: a number, or a share of the steps below 1. The
            first search is at the last of them. Published: 0.22, so that of 50 steps the one with
            the index 10 is dense and searches.
        max_age: steps that a map may be old without a search; then there is one. Published: never.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {
            "density": 0.2,
            "searches": (0.6,),
            "dense_steps": 0.22,
            "max_age": 1000,
            "min_tokens": 0,
            "break_even": 1.0,
        }
    }
    swept: ClassVar[Swept] = Swept("density", (0.05, 0.1, 0.2, 0.3, 0.5))

    density: float = 0.2
    searches: tuple[float, ...] = (0.6,)
    recall: float = 0.8
    per_head: bool = True
    dense_steps: int | float = 0.22
    max_age: int = 30
    q_tile: int = 64
    k_tile: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0.0 < self.density <= 1.0, f"density is {self.density}; give a share in (0, 1]")
        require(
            all(0 <= share < 1 for share in self.searches),
            f"searches is {self.searches}; give shares of the loop, from 0 to below 1",
        )
        require(0 <= self.recall <= 1, f"recall is {self.recall}; give a share from 0 to 1")
        require(self.max_age >= 1, f"max_age is {self.max_age}; it must be 1 or more")

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        small = cls(q_tile=16, k_tile=16, min_tokens=0, dense_steps=0, break_even=1.0)
        return (Example(replace(small, density=1.0), replace(small, density=0.25)),)

    def planner(self) -> AdaSpaPlanner:
        """What the seam carries out."""
        return AdaSpaPlanner(self)


class AdaSpaPlanner(TilePlanner):
    """Keeps the map and the log-sum-exp of each row per layer and branch between steps."""

    def __init__(self, config: AdaSpaConfig) -> None:
        super().__init__(config)
        self.compares_heads = config.per_head

    def warm_up(
        self, q: Tensor, k: Tensor, scale: float, context: LayerContext, state: State
    ) -> None:
        """See `TilePlanner`: the last dense step searches."""
        if context.step.index + 1 >= share_of(self.config.dense_steps, context.step.total):
            self._search(q, k, scale, context, state)

    def sparse(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan:
        """See `TilePlanner`."""
        reason = "carried map"
        if self._due(context, state):
            self._search(q, k, scale, context, state)
            reason = "searched map"
        tilings = self.tilings(q, k, context)
        mask = unpack_mask(state["kept"], tilings[1].tiles)
        mask = self.with_sinks(mask, context, tilings)
        return Plan(TileMap.from_mask(mask, *tilings), reason, rest=self.rest)

    def _due(self, context: LayerContext, state: State) -> bool:
        index, searched = context.step.index, state.get("searched")
        if searched is None or index - searched[0] >= self.config.max_age:
            return True
        return any(searched[1] < share <= context.fraction for share in self.config.searches)

    def _search(
        self, q: Tensor, k: Tensor, scale: float, context: LayerContext, state: State
    ) -> None:
        tilings = self.tilings(q, k, context)
        weights, state["lse"] = tile_weights(
            q, k, scale, tilings, state.get("lse"), context.key_mask
        )
        config = self.config
        recall = config.recall if config.per_head else None
        kept = chosen(weights, self.density_setting(context), recall, context.share)
        state["kept"] = pack_mask(kept)
        state["searched"] = context.step.index, context.fraction


def tile_weights(
    q: Tensor,
    k: Tensor,
    scale: float,
    tilings: tuple[Tiling, Tiling],
    lse: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax weight that each tile holds, summed over its rows.

    Args:
        q: `(B, H, L, D)`.
        k: `(B, Hkv, L, D)`.
        scale: of the softmax.
        tilings: fixed, of the queries and of the keys.
        lse: log-sum-exp of each row `(B, H, L)`, as an earlier search gave it; None to work it out.
        key_mask: bool `(B, L)`, True for keys that take part; None for all.

    Returns:
        Float32 `(B, H, Tq, Tk)`, and the log-sum-exp of the rows.
    """
    q_tile, k_tile = (int(tiling.tile or 0) for tiling in tilings)
    length, rows = k.shape[2], q.shape[0] * q.shape[1] * k.shape[2]
    step = max(1, _CHUNK // (rows * q_tile)) * q_tile
    weights, totals = [], []
    for start in range(0, q.shape[2], step):
        part = q[:, :, start : start + step]
        scores = grouped_product(part, k).float() * scale
        if key_mask is not None:
            scores = scores.masked_fill(~key_mask[:, None, None], -torch.inf)
        own = None if lse is None else lse[:, :, start : start + step, None]
        # (a row without keys is 0)
        top = scores.amax(-1, keepdim=True).clamp(min=-1e30) if own is None else own
        shares = F.pad(scores.sub_(top).exp_(), (0, -length % k_tile, 0, -part.shape[2] % q_tile))
        shares = shares.unflatten(-1, (-1, k_tile)).sum(-1)
        if own is None:
            total = shares.sum(-1, keepdim=True)
            shares = shares / total.clamp(min=1e-30)
            own = top + total[:, :, : part.shape[2]].log()
        weights.append(shares.unflatten(2, (-1, q_tile)).sum(3))
        totals.append(own[..., 0])
    return torch.cat(weights, 2), torch.cat(totals, 2)


def chosen(
    weights: Tensor, density: float, recall: float | None, share: HeadShare = ALL_HEADS
) -> Tensor:
    """The tiles of each row that weigh most, bool like weights.

    Args:
        weights: of the tiles, `(B, H, Tq, Tk)`.
        density: share of the tiles of a row.
        recall: of a head above which it can do with fewer tiles; None for one density.
        share: which of the layer's heads these are.
    """
    tiles = weights.shape[-1]
    count = _count(density, tiles)
    if recall is None or density >= 1:
        return largest(weights, count)
    kept = (weights * largest(weights, count)).sum((-1, -2)) / weights.sum((-1, -2))
    kept = share.every(kept, 1)
    # n heads are good enough: the n best of all give up what the n worst get
    good = (kept > recall).sum(1, keepdim=True).clamp(max=kept.shape[1] // 2)
    rank = kept.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    counts = torch.full_like(rank, count)
    counts[rank < good] = _count(density / 2, tiles)
    counts[rank >= kept.shape[1] - good] = _count(min(1.0, 1.5 * density), tiles)
    numbers = share.numbers(weights.shape[1])
    counts = counts[:, numbers.start : numbers.stop, None]
    return largest(weights, counts.expand(weights.shape[:3]))


def _count(density: float, tiles: int) -> int:
    return max(1, math.floor(density * tiles + 1e-9))
