"""Moments of tiles of any size, and attention to them; fixed tiles have `kernels/moments`."""

from __future__ import annotations

import torch
from torch import Tensor

from ....kernels import TileMap, TileMoments, Tiling, pool_tiles, score_variance, tile_moments
from ....kernels.segments import segment_sums
from ..planner import TileStats

# Elements of the largest tensors that are held at once.
_CHUNK = 1 << 24


def loss_of_means(q_means: Tensor, moments: TileMoments, scale: float) -> Tensor:
    """How much of its mass a tile gets wrong where its means stand for it.

    With the keys of a tile at mean + d and its values at mean + e, the tile's term in the numerator
    is n exp(s q.mean) E[exp(s q.d) (mean + e)]. To second order E[exp(s q.d)] is 1 + u/2 with u =
    s^2 q'Cq, C the covariance of the keys: its logarithm is the bias. What is left is at most
    sqrt(u) times the spread of the values (Cauchy-Schwarz), and a part of u / 2 itself, as C's
    diagonal stands for C and the mean of a query tile for its queries: their sum is the loss.

    Args:
        q_means: mean query of each query tile, `(B, H, Tq, D)`.
        moments: of the key tiles.
        scale: of the softmax.

    Returns:
        `(B, H, Tq, Tk)`.
    """
    group = q_means.shape[1] // moments.keys.shape[1]
    u = score_variance(q_means, moments, scale)
    spread = moments.value_spread.repeat_interleave(group, 1)[:, :, None]
    norms = moments.values.norm(dim=-1).repeat_interleave(group, 1)[:, :, None]
    return u.sqrt() * spread + u / 2 * norms


def segment_moments(
    k: Tensor, v: Tensor, labels: Tensor, tiles: int, weights: Tensor | None = None
) -> TileMoments:
    """Moments of tiles of any size, each token with the number of its tile.

    Args:
        k: `(B, H, L, D)`.
        v: like k.
        labels: int `(B|1, H|1, L)`.
        tiles: their number T.
        weights: float `(B, H, L, 1)`, 0 for keys that do not count; None where all do.
    """
    ones = k.new_ones((*k.shape[:3], 1), dtype=torch.float32) if weights is None else weights
    sizes = segment_sums(ones, labels, tiles)[..., 0]

    def means(x: Tensor) -> Tensor:
        x = x.float() if weights is None else x.float() * weights
        return segment_sums(x, labels, tiles) / sizes.clamp(min=1)[..., None]

    keys, values = means(k), means(v)
    variance = (means(k.float().square()) - keys.square()).clamp(min=0)
    squares = means(v.float().square().sum(-1, keepdim=True))[..., 0]
    spread = (squares - values.norm(dim=-1).square()).clamp(min=0).sqrt()
    return TileMoments(sizes, keys, values, variance, spread)


def key_weights(mask: Tensor | None, k: Tensor, group: int = 1) -> Tensor | None:
    """A mask of the keys as `segment_moments` takes it; see `centroids`."""
    if mask is None:
        return None
    own = mask[:, None] if mask.ndim == 2 else mask[:, ::group, 0]
    return own.expand(k.shape[:3])[..., None].float()


def stats_of(tile_map: TileMap, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> TileStats:
    """What the rest needs to know of the tiles; see `centroids`."""
    q_means = pool_tiles(q, tile_map.q_tiling)
    tiling = tile_map.k_tiling
    if tiling.is_fixed and (mask is None or mask.ndim == 2):
        return TileStats(q_means, tile_moments(k, v, tiling, mask))
    group = group_of(q, k)
    labels = tile_of_key(tiling, k, group)
    weights = key_weights(mask, k, group)
    return TileStats(q_means, segment_moments(k, v, labels, tiling.tiles, weights))


def group_of(q: Tensor, k: Tensor) -> int:
    """Query heads that share a key head."""
    return q.shape[1] // k.shape[1]


def per_head(x: Tensor, heads: int) -> Tensor:
    """What `(B, Hkv|1, …)` holds for each query head."""
    return x if x.shape[1] == 1 else x.repeat_interleave(heads // x.shape[1], 1)


def tile_of_key(tiling: Tiling, k: Tensor, group: int) -> Tensor:
    """Int `(B|1, Hkv|1, L)`; heads that share keys share their tiles."""
    labels = tiling.tile_of_token(k.device)
    return labels[:, ::group] if labels.shape[1] > k.shape[1] else labels


def moments_of_any(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    tiles: Tensor,
    tile_map: TileMap,
    stats: TileStats,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """What `moment_attention` gives, over tiles of any size, one head after the other."""
    group, heads = group_of(q, k), q.shape[1]
    labels = tile_of_key(tile_map.k_tiling, k, group).expand(k.shape[:3])
    moments, weights = stats.moments, key_weights(mask, k, group)
    half = score_variance(stats.q_means, moments, scale) / 2
    sizes = per_head(moments.sizes.float(), heads)[:, :, None]
    bias = (half.log1p() + sizes.clamp(min=1).log()).masked_fill(~(tiles & (sizes > 0)), -torch.inf)
    rows = tile_map.q_tiling.tile_of_token(q.device).expand(q.shape[:3])
    outputs, totals = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    for b in range(q.shape[0]):
        for h in range(heads):
            at = h // group
            own = None if weights is None else weights[b, at]
            covariance = _covariances(k[b, at], v[b, at], labels[b, at], moments, (b, at), own)
            head = (moments.keys[b, at], moments.values[b, at], covariance.flatten(1))
            outputs[b, h], totals[b, h] = _one_head(
                q[b, h].float(), rows[b, h], scale, *head, bias[b, h], half[b, h]
            )
    return outputs, totals


def _covariances(
    k: Tensor,
    v: Tensor,
    labels: Tensor,
    moments: TileMoments,
    place: tuple[int, int],
    weights: Tensor | None,
) -> Tensor:
    """Cov(v, k) of each tile of one head, `(T, D, D)`: value channels down, key channels across."""
    sizes, means = moments.sizes[place].float(), moments.keys[place]
    away = k.float() - means[labels]
    if weights is not None:
        away = away * weights
    width = max(1, _CHUNK // away.numel())
    parts = []
    for values in v.float().split(width, 1):
        products = (values[:, :, None] * away[:, None]).flatten(1)[None, None]
        sums = segment_sums(products, labels[None, None], len(sizes))[0, 0]
        parts.append(sums.unflatten(1, (values.shape[1], -1)))
    return torch.cat(parts, 1) / sizes.clamp(min=1)[:, None, None]


def _one_head(
    q: Tensor,
    rows: Tensor,
    scale: float,
    keys: Tensor,
    values: Tensor,
    covariance: Tensor,
    bias: Tensor,
    half: Tensor,
) -> tuple[Tensor, Tensor]:
    """Output `(L, D)` and log-sum-exp `(L,)` of queries in the tiles `rows`."""
    step = max(1, _CHUNK // max(len(keys), covariance.shape[1]))
    weights, totals = [], []
    for part, tile in zip(q.split(step), rows.split(step), strict=True):
        scores = part @ keys.T * scale + bias[tile]
        total = scores.logsumexp(-1)
        # A query without such tiles: weights of 0 instead of NaN.
        weights.append((scores - total.clamp(min=-1e30)[:, None]).exp())
        totals.append(total)
    every = torch.cat(weights)
    sums = torch.zeros_like(bias).index_add_(0, rows, every)
    counts = torch.bincount(rows, minlength=len(bias)).clamp(min=1)[:, None]
    mixed = (sums / counts / (1 + half) @ covariance).unflatten(1, (values.shape[1], -1))
    follows = [
        torch.bmm(mixed[tile], part[..., None])[..., 0]
        for part, tile in zip(q.split(step), rows.split(step), strict=True)
    ]
    return every @ values + scale * torch.cat(follows), torch.cat(totals)
