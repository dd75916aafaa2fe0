"""SLA's map: which key tiles of a query tile are critical, marginal and negligible."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...kernels import TileMoments, score_variance
from ..engine.rest.moments import loss_of_means


def tile_classes(
    mass: Tensor, critical: float, negligible: float, rank: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sort the key tiles of each query tile into critical, marginal and negligible ones.

    Args:
        mass: `(B, H, Tq, Tk)`, share of each key tile in the row's softmax, or its logarithm up to
            a constant of the row: only its order counts.
        critical: share of the key tiles that are critical, rounded down, but at least one tile.
        negligible: share that is negligible, rounded down: those of the least mass that are not
            critical.
        rank: what makes tiles critical, the largest first; the mass by default.

    Returns:
        critical and marginal, bool like mass.
    """
    tiles = mass.shape[-1]
    first = max(1, math.floor(critical * tiles + 1e-9))
    last = min(math.floor(negligible * tiles + 1e-9), tiles - first)
    rank = mass if rank is None else rank
    chosen = rank.sort(dim=-1, descending=True, stable=True).indices[..., :first]
    is_critical = torch.zeros_like(mass, dtype=torch.bool).scatter_(-1, chosen, True)
    if last == 0:
        return is_critical, ~is_critical
    left = mass.masked_fill(is_critical, torch.inf)
    dropped = left.sort(dim=-1, stable=True).indices[..., :last]
    is_negligible = torch.zeros_like(is_critical).scatter_(-1, dropped, True)
    return is_critical, ~(is_critical | is_negligible)


def pooled_scores(q_means: Tensor, moments: TileMoments, scale: float) -> Tensor:
    """Scores of mean queries and mean keys, by whose softmax tiles are sorted as published.

    The softmax itself is not taken: it changes no order within a row, and where scores lie far
    apart it is 0 in float32 for many tiles, whose order would be lost.

    Args:
        q_means: mean query of each query tile, `(B, H, Tq, D)`.
        moments: of the key tiles.
        scale: of the softmax.

    Returns:
        `(B, H, Tq, Tk)`, -inf for tiles without keys.
    """
    keys = moments.keys
    rows = q_means.to(keys.dtype).unflatten(1, (keys.shape[1], -1))
    scores = (rows.flatten(2, 3) @ keys.mT).unflatten(2, rows.shape[2:4]).flatten(1, 2) * scale
    return scores.masked_fill(moments.sizes[:, :, None] == 0, -torch.inf)


def moment_errors(q_means: Tensor, moments: TileMoments, scale: float) -> tuple[Tensor, Tensor]:
    """Mass of each key tile by its moments, and how much of the output they would get wrong.

    See `rest.loss_of_means`.

    Args:
        q_means: mean query of each query tile, `(B, H, Tq, D)`.
        moments: of the key tiles.
        scale: of the softmax.

    Returns:
        mass and error, `(B, H, Tq, Tk)`.
    """
    half = score_variance(q_means, moments, scale) / 2
    sizes = moments.sizes[:, :, None].clamp(min=1).log()
    mass = (pooled_scores(q_means, moments, scale) + half.log1p() + sizes).softmax(-1)
    return mass, mass * loss_of_means(q_means, moments, scale)
