"""Linear and low-rank companions: rests that stand for all skipped tiles of a query tile at once.

Each is linear attention over the skipped tiles, by features of queries and keys:

    value = phi(q) (sum phi(k) v^T) / phi(q) (sum phi(k)),

summed per key tile once and added up over the tiles that a query tile skips. What is left open is
how much of the softmax the value takes. Random features say it themselves: phi(q) phi(k) is an
estimate of exp(s q.k). The features of the others are scaled freely; they take what the tiles'
means take (`means`: s q.mean_k + log n + log(1 + u/2) per tile, with the scale s and the variance u
of the scores of its keys).

| rest | features | source |
|---|---|---|
| `average` | 1 of queries; of keys the mean weight of their tile over queries | SEA, 2310.01777 |
| `agents` | softmax over agents, softmax of each agent over keys | Agent Attention, 2312.08874 |
| `random_features` | exp(W x - x^2 / 2), W random normal | Scatterbrain, 2110.15343 |
| `norm_aware` | powers by sign; a query's norm sets its power | NaLaFormer, 2506.21137 |

None is trained here, so each is in the manner of its source: SEA estimates the weights by a trained
network, and gates the average; agents are tokens merged by likeness there, and query tiles' means
here; NaLaFormer trains the layers around its features. Scatterbrain subtracts exact pairs from a
sum over all keys; adding up the others is the same, and nothing cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ....kernels import TileMap, feature_map, score_variance
from ....kernels.segments import segment_sums
from ..planner import TileStats

# Random features per head, and where their directions come from: the same in each call.
_FEATURES, _SEED = 64, 0
# Agents' weights are sharper than the softmax: (published) logits are scaled by s^0.3.
_SHARPER = 0.3
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Head:
    """One head of a call, in float32.

    Attributes:
        q: `(L, D)`.
        k: `(Lk, D)`.
        scale: of the softmax.
        q_means: of the query tiles, `(Tq, D)`.
        counts: which keys count, float `(Lk, 1)` of zeros and ones.
        labels: tile of each key, int64 `(Lk,)`.
        logits: of the tiles' means for the query tiles' means, `(Tq, Tk)`.
    """

    q: Tensor
    k: Tensor
    scale: float
    q_means: Tensor
    counts: Tensor
    labels: Tensor
    logits: Tensor


# Features of queries `(L, F)` and keys `(Lk, F)`; and what is taken off the logarithm of their
# products, per query `(L,)`, where they estimate exp(s q.k): None where they do not.
Features = tuple[Tensor, Tensor, Tensor | None]


def average(head: Head) -> Features:
    """One value for all queries that skip the same tiles."""
    weights = head.logits.softmax(-1).mean(0)
    sizes = torch.zeros_like(weights).index_add_(0, head.labels, head.counts[:, 0])
    of_key = (weights / sizes.clamp(min=1))[head.labels]
    return torch.ones_like(head.q[:, :1]), of_key[:, None], None


def agents(head: Head) -> Features:
    """Query tiles' means stand between queries and keys, with a softmax on either side."""
    of_query = (head.scale**_SHARPER * head.q @ head.q_means.T).softmax(-1)
    scores = head.scale * head.k @ head.q_means.T
    scores = scores.masked_fill(head.counts == 0, -torch.inf)
    return of_query, scores.softmax(0), None


def random_features(head: Head) -> Features:
    """Positive random features of the softmax kernel (Performer), in logarithms until the end."""
    dim = head.q.shape[-1]
    generator = torch.Generator().manual_seed(_SEED)
    directions = torch.randn(dim, _FEATURES, generator=generator).to(head.q)
    made = []
    for x in (head.q, head.k):
        x = x * head.scale**0.5
        made.append(x @ directions - x.square().sum(-1, keepdim=True) / 2)
    # any factor of a query cancels in its value, and one factor of all keys does
    tops = [made[0].amax(-1, keepdim=True), made[1].amax()]
    of_query, of_key = (m.sub(top).exp() for m, top in zip(made, tops, strict=True))
    offset = tops[0][:, 0] + tops[1] - math.log(_FEATURES)
    return of_query, of_key, offset


def norm_aware(head: Head) -> Features:
    """See `kernels/sparse_linear/features.py`."""
    of_query, of_key = feature_map("norm_aware")(head.q, head.k)
    return of_query, of_key, None


COMPANIONS: dict[str, Callable[[Head], Features]] = {
    "average": average,
    "agents": agents,
    "random_features": random_features,
    "norm_aware": norm_aware,
}


def companion(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    tiles: Tensor,
    tile_map: TileMap,
    stats: TileStats,
    labels: Tensor,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of skipped tiles, a part for `merge_attention`; one head at a time.

    Args:
        name: of the companion.
        q: `(B, H, L, D)`, in the order of the plan; keys and values likewise.
        k: `(B, Hkv, L, D)`.
        v: like k.
        scale: of the softmax.
        tiles: that are skipped, bool `(B|1, H|1, Tq, Tk)`.
        tile_map: of the call.
        stats: of its tiles.
        labels: tile of each key, int `(B, Hkv, L)`.
        weights: float `(B, Hkv, L, 1)`, 0 for keys that do not count; None where all do.
    """
    heads = q.shape[1]
    group, moments = heads // k.shape[1], stats.moments
    half = score_variance(stats.q_means, moments, scale) / 2
    sizes = moments.sizes.float().expand(-1, k.shape[1], -1).repeat_interleave(group, 1)
    bias = (half.log1p() + sizes.clamp(min=1).log()[:, :, None]).masked_fill(
        sizes[:, :, None] == 0, -torch.inf
    )
    tiles = tiles.expand(q.shape[0], heads, -1, -1)
    rows = tile_map.q_tiling.tile_of_token(q.device).expand(q.shape[:3])
    outputs, totals = [], []
    for b in range(q.shape[0]):
        for h in range(heads):
            at = h // group
            counts = torch.ones_like(k[b, at, :, :1]) if weights is None else weights[b, at]
            means, q_means = moments.keys[b, at], stats.q_means[b, h].float()
            logits = scale * q_means @ means.T + bias[b, h]
            own = Head(
                q[b, h].float(), k[b, at].float(), scale, q_means, counts.float(),
                labels[b, at], logits,
            )  # fmt: skip
            biased = bias[b, h].masked_fill(~tiles[b, h], -torch.inf)
            output, total = _one_head(
                COMPANIONS[name](own), own, v[b, at].float(), tiles[b, h], rows[b, h], means,
                biased, (tile_map.q_tiling.tile, tile_map.k_tiling.tile),
            )  # fmt: skip
            outputs.append(output.to(q.dtype))
            totals.append(total)
    return (
        torch.stack(outputs).unflatten(0, q.shape[:2]),
        torch.stack(totals).unflatten(0, q.shape[:2]),
    )


def _one_head(
    features: Features,
    head: Head,
    v: Tensor,
    tiles: Tensor,
    rows: Tensor,
    means: Tensor,
    bias: Tensor,
    sizes: tuple[int | None, int | None],
) -> tuple[Tensor, Tensor]:
    """Output `(L, D)` and log-sum-exp `(L,)` of one head; `sizes` of fixed tiles, else None."""
    of_query, of_key, offset = features
    of_key = of_key * head.counts
    skipped = tiles.to(of_key.dtype)
    labels, count = head.labels, tiles.shape[1]
    total = skipped @ segment_sums(of_key[None, None], labels[None, None], count)[0, 0]
    divisor = (of_query * total[rows]).sum(-1)
    q_tile, k_tile = sizes
    parts = []
    for values in v.split(max(1, _CHUNK // of_key.numel()), 1):
        if k_tile is not None:
            own = _in_tiles(of_key, k_tile).mT @ _in_tiles(values, k_tile)
        else:
            products = (of_key[:, :, None] * values[:, None]).flatten(1)[None, None]
            own = segment_sums(products, labels[None, None], count)[0, 0]
            own = own.unflatten(1, (of_key.shape[1], -1))
        sums = (skipped @ own.flatten(1)).unflatten(1, own.shape[1:])
        if q_tile is not None:
            parts.append((_in_tiles(of_query, q_tile) @ sums).flatten(0, 1)[: len(rows)])
        else:
            parts.append(_in_rows(of_query, sums, rows))
    tiny = torch.finfo(divisor.dtype).tiny
    output = torch.cat(parts, 1) / divisor.clamp(min=tiny)[:, None]
    if offset is not None:
        lse = divisor.clamp(min=tiny).log() + offset
    else:
        scores = head.scale * head.q @ means.T + bias[rows]
        lse = scores.logsumexp(-1)
    some = (bias > -torch.inf).any(-1)[rows]
    none = ~some | (divisor <= 0)
    return output.masked_fill(none[:, None], 0.0), lse.masked_fill(none, -torch.inf)


def _in_tiles(x: Tensor, tile: int) -> Tensor:
    """`(L, C)` as `(T, tile, C)`, zeros behind the end."""
    return torch.nn.functional.pad(x, (0, 0, 0, -len(x) % tile)).unflatten(0, (-1, tile))


def _in_rows(of_query: Tensor, sums: Tensor, rows: Tensor) -> Tensor:
    """Features `(L, F)` times the matrix `(Tq, F, C)` of each query's tile."""
    step = max(1, _CHUNK // sums[0].numel())
    parts = [
        torch.bmm(own[:, None], sums[tile])[:, 0]
        for own, tile in zip(of_query.split(step), rows.split(step), strict=True)
    ]
    return torch.cat(parts)
