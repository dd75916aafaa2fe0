"""Scores of tiles from pooled queries and keys, and rules by which methods choose among them."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels import Tiling, pool_tiles
from ...pipelines.grids import Grid
from .planner import LayerContext, State
from .tile_planner import MaskPlanner


def mean_keys(k: Tensor, tiling: Tiling, key_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Mean key of each tile `(B, Hkv, T, D)`, and the share of its keys that count `(B, 1|Hkv, T)`.

    Args:
        k: `(B, Hkv, L, D)`.
        tiling: of the keys.
        key_mask: bool `(B, L)` or `(B, Hkv, L)`, True for keys that count; None for all, and then
            there is no share.
    """
    if key_mask is None:
        return pool_tiles(k, tiling), None
    counted = (key_mask[:, None] if key_mask.ndim == 2 else key_mask)[..., None].to(k.dtype)
    share = pool_tiles(counted, tiling)
    return pool_tiles(k * counted, tiling) / share.clamp(min=1e-6), share[..., 0]


def tile_scores(
    q: Tensor,
    k: Tensor,
    tilings: tuple[Tiling, Tiling],
    scale: float,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Mean query of each query tile times mean key of each key tile.

    Args:
        q: `(B, H, L, D)`.
        k: `(B, Hkv, L, D)`.
        tilings: of the queries and of the keys.
        scale: of the softmax.
        key_mask: of the keys that take part; see `mean_keys`.

    Returns:
        float32 `(B, H, Tq, Tk)`, -inf for tiles without keys.
    """
    keys, share = mean_keys(k, tilings[1], key_mask)
    scores = grouped_product(pool_tiles(q, tilings[0]), keys) * scale
    if share is None:
        return scores
    empty = (share == 0).repeat_interleave(scores.shape[1] // share.shape[1], 1)
    return scores.masked_fill(empty[:, :, None], -torch.inf)


def grouped_product(q: Tensor, k: Tensor) -> Tensor:
    """`q k'` where several heads of q share one of k: `(B, H, M, D)`, `(B, Hkv, N, D)` to
    `(B, H, M, N)`."""
    rows = q.unflatten(1, (k.shape[1], -1))
    return (rows.flatten(2, 3) @ k.mT).unflatten(2, rows.shape[2:4]).flatten(1, 2)


def smallest_set(weights: Tensor, share: float, least: int = 1) -> Tensor:
    """In each row the fewest tiles that hold a share of its sum, the one that crosses it included.

    Args:
        weights: `(..., T)`, 0 or more.
        share: to keep, in (0, 1]; 1 keeps all.
        least: tiles that are kept at least.

    Returns:
        bool like weights.
    """
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    sums = ordered.cumsum(-1)
    before = sums - ordered
    rank = torch.arange(ordered.shape[-1], device=ordered.device)
    # Rounding brings the sum to its end before the last tile that has any weight.
    keep = (before < share * sums[..., -1:]) | (rank < max(1, least)) | (share >= 1.0)
    return torch.zeros_like(keep).scatter_(-1, order, keep)


def largest(scores: Tensor, count: int | Tensor) -> Tensor:
    """In each row so many tiles with the largest scores, of equal ones the first.

    Args:
        scores: `(..., T)`.
        count: one for all, or int `(...)` for each row.

    Returns:
        bool like scores.
    """
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    rank = torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape)
    keep = rank < (count if isinstance(count, int) else count[..., None])
    return torch.zeros_like(keep).scatter_(-1, order, keep)


class PooledPlanner(MaskPlanner):
    """Maps from mean queries and keys of neighbourhoods of a picture or clip, one to a tile.

    Where the grid is not known, a neighbourhood is a run of as many tokens. Tokens beside the grid
    (text, given images, a first frame that is a sink) are computed in full.
    """

    @abstractmethod
    def cube(self, context: LayerContext) -> Grid:
        """Frames, rows and columns of a neighbourhood."""

    def order(self, context: LayerContext, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """See `MaskPlanner`: the grid first, neighbourhood by neighbourhood, then all others."""
        return self.in_cubes(context, self.cube(context), device, in_front=True)

    def tilings(self, q: Tensor, k: Tensor, context: LayerContext) -> tuple[Tiling, Tiling]:
        """See `TilePlanner`: a neighbourhood is a tile."""
        tile = math.prod(self.cube(context))
        return Tiling.fixed(q.shape[2], tile), Tiling.fixed(k.shape[2], tile)

    def mask(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Tensor:
        """See `MaskPlanner`."""
        count, mask = self.pooled_tokens(context), context.key_mask
        own = None if mask is None else mask[:, :count]
        tile = math.prod(self.cube(context))
        tilings = (Tiling.fixed(count, tile),) * 2
        scores = tile_scores(q[:, :, :count], k[:, :, :count], tilings, scale, own)
        others = -(-context.length // tile) - scores.shape[-1]
        return F.pad(self.choose(scores, context), (0, others, 0, others), value=True)

    def pooled_tokens(self, context: LayerContext) -> int:
        """Tokens of the grid, which come first; all where it is not known."""
        if context.grid is None or context.grid_tokens is None:
            return context.length
        frames, rows, columns = context.grid
        return (frames - (frames > 1 and "first_frame" in self.config.sinks)) * rows * columns

    def first_tokens(self, context: LayerContext, device: torch.device) -> Tensor:
        """Number in the grid of the first token of each neighbourhood, int64 `(T,)`.

        Counted without a first frame that stays apart; only where the grid is known.
        """
        order = self.order(context, device)
        assert order is not None and context.grid_tokens is not None
        tokens = order[0][: self.pooled_tokens(context) : math.prod(self.cube(context))]
        return tokens - (context.grid_tokens[1] - self.pooled_tokens(context))

    @abstractmethod
    def choose(self, scores: Tensor, context: LayerContext) -> Tensor:
        """The tiles to compute, bool like their scores `(B, H, T, T)`; of the grid alone."""
