"""Attention to tiles through their moments: what stands for tiles that are not computed.

The keys of a tile are its mean plus `d`, the values its mean plus `e`, over `n` keys. For a query
`q` and the softmax scale `s`, the tile adds to numerator and denominator of the softmax

    sum exp(s q.k) (v, 1) = n exp(s q.mean_k) E[exp(s q.d) (mean_v + e, 1)].

To second order in `d`, `E[exp(s q.d)] = 1 + u/2` with `u = s^2 q'Var(k)q`, and to first order
`E[exp(s q.d) e] = s Cov(v, k) q`. So the tile is one key `mean_k` with the logit

    s q.mean_k + log n + log(1 + u/2)

and the value `mean_v + s Cov(v, k) q / (1 + u/2)`. Its logit is one of the softmax of the tiles
that are computed exactly (`merge_attention` puts both under one denominator), so nothing has to be
trained, and a tile of equal keys, or of one key, is exact.

Two things are taken at the mean `Q` of a query tile instead of at each query. The spread `u`, with
the diagonal of Var(k) for the matrix. And the weights with which covariances add up: let `a_j` be
the mean weight of tile j over the queries of the query tile; then

    output = sum_j w_j(q) mean_v_j + s C q,    C = sum_j a_j / (1 + u_j/2) Cov_j(v, k).

C is one D x D matrix for each query tile, as the state of linear attention is: the second term is
linear attention, centred on its tiles. It costs a share `D / (2 tile)` of one exact tile per query
tile and key tile, instead of a multiple of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..tiling import Tiling

__all__ = ["TileMoments", "moment_attention", "score_variance", "tile_moments"]

# Elements of the largest tensors that are held at once.
_CHUNK = 1 << 24


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


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _tiles(x: Tensor, tile: int) -> Tensor:
    """`(B, H, L, …)` to `(B, H, T, tile, …)`, zeros behind the end."""
    short = -x.shape[2] % tile
    if short:
        x = torch.cat([x, x.new_zeros(*x.shape[:2], short, *x.shape[3:])], 2)
    return x.unflatten(2, (-1, tile))


def _tile(tiling: Tiling) -> int:
    if tiling.tile is None:
        raise ValueError("moments are taken over tiles of fixed size; got tiles that vary")
    return tiling.tile


def _counted(k: Tensor, tiling: Tiling, mask: Tensor | None) -> Tensor:
    """Which keys count, `(B|1, 1, T, tile, 1)` in the dtype of the sums."""
    counted = k.new_ones((1, 1, k.shape[2], 1), dtype=_wide(k))
    if mask is not None:
        counted = mask[:, None, :, None].to(_wide(k))
    return _tiles(counted, _tile(tiling))


def _centred(x: Tensor, tiling: Tiling, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Means `(B, H, T, D)`, and what each token is away from its tile's `(B, H, T, tile, D)`."""
    tiles = _tiles(x.to(_wide(x)), _tile(tiling))
    if counted.shape[0] > 1:
        tiles = tiles * counted
    means = tiles.sum(3) / counted.sum(3).clamp(min=1)
    return means, (tiles - means[:, :, :, None]) * counted


def tile_moments(k: Tensor, v: Tensor, tiling: Tiling, mask: Tensor | None = None) -> TileMoments:
    """Means and spreads of the keys and values of each tile.

    Args:
        k: `(B, H, L, D)`.
        v: the same.
        tiling: tiles of fixed size.
        mask: bool `(B, L)`, True for keys that count.
    """
    counted = _counted(k, tiling, mask)
    return _moments(_centred(k, tiling, counted), _centred(v, tiling, counted), counted)


def _moments(
    keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor], counted: Tensor
) -> TileMoments:
    """Moments from what `_centred` gives of keys and values."""
    sizes = counted.sum(3).squeeze(-1)
    least = sizes.clamp(min=1)
    return TileMoments(
        sizes,
        keys[0],
        values[0],
        keys[1].square().sum(3) / least[..., None],
        (values[1].square().sum((3, 4)) / least).sqrt(),
    )


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
    variance = variance.repeat_interleave(q_means.shape[1] // variance.shape[1], 1)
    return scale**2 * (q_means.to(variance.dtype).square() @ variance.transpose(-1, -2))


def moment_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    marginal: Tensor,
    q_tiling: Tiling,
    k_tiling: Tiling,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention to the tiles of `marginal` alone, each through its moments; autograd follows.

    Args:
        q: `(B, H, Lq, D)`.
        k: `(B, Hkv, Lk, D)`; Hkv divides H.
        v: like k.
        marginal: bool `(B|1, H|1, Tq, Tk)`, the tiles to attend to.
        q_tiling: of the queries, of fixed size.
        k_tiling: of the keys, of fixed size.
        scale: of the softmax; `1 / sqrt(D)` by default.
        mask: bool `(B, Lk)`, True for keys that count.

    Returns:
        Output `(B, H, Lq, D)` in the dtype of q, and log-sum-exp `(B, H, Lq)` in float32 (float64
        for float64 inputs): a part for `merge_attention`. Queries without marginal tiles get 0 and
        -inf.

    Raises:
        ValueError: tiles that vary in size, or shapes that do not fit.
    """
    tiles = (q_tiling.tiles, k_tiling.tiles)
    if marginal.dtype != torch.bool or tuple(marginal.shape[-2:]) != tiles or marginal.ndim != 4:
        raise ValueError(
            f"marginal must be bool (B or 1, H or 1, {tiles[0]}, {tiles[1]}), got "
            f"{marginal.dtype} {tuple(marginal.shape)}"
        )
    if (q_tiling.length, k_tiling.length) != (q.shape[2], k.shape[2]):
        raise ValueError(
            f"tilings are for {q_tiling.length} queries and {k_tiling.length} keys, but there are "
            f"{q.shape[2]} and {k.shape[2]}"
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    counted = _counted(k, k_tiling, mask)
    group = q.shape[1] // k.shape[1]
    marginal = marginal.expand(q.shape[0], q.shape[1], *tiles)
    outputs, sums = [], []
    for head in range(k.shape[1]):
        keys, values = (_centred(x[:, head : head + 1], k_tiling, counted) for x in (k, v))
        moments = _moments(keys, values, counted)
        covariance = _covariance(keys[1], values[1], counted)
        for at in range(head * group, (head + 1) * group):
            part = _head(
                *(q[:, at : at + 1], moments, covariance),
                *(marginal[:, at : at + 1], _tile(q_tiling), scale),
            )
            outputs.append(part[0].to(q.dtype))
            sums.append(part[1])
    return torch.cat(outputs, 1), torch.cat(sums, 1)


def _covariance(key_part: Tensor, value_part: Tensor, counted: Tensor) -> Tensor:
    """Cov(v, k) of each tile, `(B, 1, T, D, D)`: value channels down, key channels across."""
    return value_part.transpose(-1, -2) @ key_part / counted.sum(3).clamp(min=1)[..., None]


def _head(
    q: Tensor,
    moments: TileMoments,
    covariance: Tensor,
    marginal: Tensor,
    q_tile: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """One query head `(B, 1, Lq, D)`, some query tiles at a time."""
    length = q.shape[2]
    wide = q.to(_wide(q))
    queries = _tiles(wide, q_tile)
    real = _tiles(torch.ones_like(wide[:1, :, :, :1]), q_tile)
    q_means = queries.sum(3) / real.sum(3)
    half = score_variance(q_means, moments, scale) / 2
    open_ = marginal & (moments.sizes > 0)[:, :, None]
    bias = half.log1p() + moments.sizes.clamp(min=1).log()[:, :, None]
    bias = bias.masked_fill(~open_, -torch.inf)
    flat = covariance.flatten(3)
    step = max(1, _CHUNK // (q.shape[0] * max(q_tile * bias.shape[-1], flat.shape[-1])))
    outputs, sums = [], []
    for start in range(0, queries.shape[2], step):
        rows = slice(start, start + step)
        own, valid = queries[:, :, rows], real[:, :, rows]
        scores = own @ moments.keys[:, :, None].transpose(-1, -2) * scale
        scores = scores + bias[:, :, rows, None]
        # A query tile without marginal tiles: weights of 0, and no NaN in their gradients.
        some = open_[:, :, rows].any(-1)[..., None]
        total = scores.masked_fill(~some[..., None], 0.0).logsumexp(-1)
        weights = (scores - total[..., None]).exp()
        mean = (weights * valid).sum(3) / valid.sum(3) / (1 + half[:, :, rows])
        mixed = (mean @ flat.squeeze(1)[:, None]).unflatten(-1, covariance.shape[-2:])
        output = weights @ moments.values[:, :, None] + scale * (own @ mixed.transpose(-1, -2))
        outputs.append(output)
        sums.append(total.masked_fill(~some, -torch.inf))
    output = torch.cat(outputs, 2).flatten(2, 3)[:, :, :length]
    return output, torch.cat(sums, 2).flatten(2, 3)[:, :, :length]
