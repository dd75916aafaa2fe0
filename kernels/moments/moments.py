"""Means and spreads of the keys and values of each tile."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..tiling import Tiling


class TileMoments(NamedTuple):
    """Moments of the keys and values of each tile, float32 (float64 for float64 inputs).

    Attributes:
        sizes: `(B|1, 1, T)`, keys that count.
        keys: `(B, H, T, D)`, mean key; 0 for a tile without keys.
        values: the same of the values.
        key_variance: `(B, H, T, D)`, variance of each channel of the keys.
        value_spread: `(B, H, T)`, root mean square distance of the values from their mean.
    """

    sizes: Tensor
    keys: Tensor
    values: Tensor
    key_variance: Tensor
    value_spread: Tensor


def wide(x: Tensor) -> torch.dtype:
    """The dtype of sums over `x`."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def tile_of(tiling: Tiling) -> int:
    """Tokens of a tile.

    Raises:
        ValueError: the tiles vary in size.
    """
    if tiling.tile is None:
        raise ValueError("moments are taken over tiles of fixed size; got tiles that vary")
    return tiling.tile


def in_tiles(x: Tensor, tile: int) -> Tensor:
    """`(B, H, L, …)` to `(B, H, T, tile, …)`, zeros behind the end."""
    short = -x.shape[2] % tile
    if short:
        x = torch.cat([x, x.new_zeros(*x.shape[:2], short, *x.shape[3:])], 2)
    return x.unflatten(2, (-1, tile))


def counted(k: Tensor, tiling: Tiling, mask: Tensor | None) -> Tensor:
    """Which keys count, `(B|1, 1, T, tile, 1)` in the dtype of the sums."""
    ones = k.new_ones((1, 1, k.shape[2], 1), dtype=wide(k))
    if mask is not None:
        ones = mask[:, None, :, None].to(wide(k))
    return in_tiles(ones, tile_of(tiling))


def centred(x: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Means `(B, H, T, D)`, and what each token is away from its tile's `(B, H, T, tile, D)`; 0 for
    tokens that do not count.

    Args:
        x: `(B, H, L, D)`.
        count: see `counted`.
    """
    tiles = in_tiles(x.to(wide(x)), count.shape[3])
    means = (tiles * count).sum(3) / count.sum(3).clamp(min=1)
    return means, (tiles - means[:, :, :, None]) * count


def covariances(k: Tensor, v: Tensor, count: Tensor) -> Tensor:
    """Cov(v, k) of each tile, `(B, H, T, D, D)`: value channels down, key channels across.

    Centring one of the two is enough, and keys are the better one: nothing cancels in a sum whose
    terms are as large as it is.

    Args:
        k: `(B, H, L, D)`.
        v: the same.
        count: see `counted`.
    """
    away = centred(k, count)[1]
    values = in_tiles(v.to(wide(v)), count.shape[3])
    return values.mT @ away / count.sum(3).clamp(min=1)[..., None]


def score_variance(q_means: Tensor, moments: TileMoments, scale: float) -> Tensor:
    """`u`: variance of the scaled scores of a tile's keys for a mean query, channel by channel.

    Args:
        q_means: `(B, H, Tq, D)`; H is a multiple of the heads of the moments.
        moments: of the key tiles.
        scale: of the softmax.

    Returns:
        `(B, H, Tq, Tk)`.
    """
    variance = moments.key_variance
    means = q_means.to(variance.dtype).square().unflatten(1, (variance.shape[1], -1))
    return scale**2 * (means.flatten(2, 3) @ variance.mT).unflatten(2, means.shape[2:4]).flatten(
        1, 2
    )
