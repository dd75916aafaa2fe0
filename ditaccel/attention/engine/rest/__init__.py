"""The rest of a map: what stands for the tiles that are not computed, under the same softmax.

`nothing`: they are left out. `means`: each tile of n keys is one mean key and value, of the logit
s q.mean_k + log n + log(1 + u/2), with the scale s and the variance u of the scores of its keys
(`kernels/attention/centroids.py`). `moments`: in addition, its value follows the query by the
covariance of its values and keys (`kernels/moments`, which derives both). Others stand for all
skipped tiles of a query tile at once (`companions.py`). Any map takes any rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....kernels import (
    TileCentroids,
    TileMap,
    moment_attention,
    score_variance,
    tile_attention,
)
from ..planner import Plan
from .companions import COMPANIONS, companion
from .moments import group_of, key_weights, moments_of_any, per_head, stats_of, tile_of_key


def skipped(plan: Plan, keep: Tensor | None) -> Tensor:
    """The tiles that the rest stands for, bool `(B|1, H|1, Tq, Tk)`.

    Args:
        plan: what is computed.
        keep: marks of the kernel, where it left more out in this very call.
    """
    if plan.stands_for is not None:
        return plan.stands_for
    if plan.marking is not None and plan.marking.skip_now and keep is not None:
        return ~keep
    return ~plan.tile_map.to_mask()


def centroids(
    plan: Plan, q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None
) -> TileCentroids:
    """Means of the key tiles, with a bias that says how much each counts, -inf for not at all.

    Args:
        plan: of the tiles.
        q: `(B, H, L, D)` in the order of the plan; keys, values and mask likewise.
        k: `(B, Hkv, L, D)`.
        v: like k.
        scale: of the softmax.
        mask: of the keys, bool `(B, L)` or `(B, H, 1, L)`.
    """
    q_means, moments = plan.stats or stats_of(plan.tile_map, q, k, v, mask)
    group = group_of(q, k)
    bias = (score_variance(q_means, moments, scale) / 2).log1p()
    if mask is not None:
        # the kernel counts all keys of a tile
        counted = moments.sizes.float() / plan.tile_map.k_tiling.sizes(k.device)[:, ::group]
        bias = bias + per_head(counted, q.shape[1]).log()[..., None, :]
    if plan.stands_for is not None:
        bias = bias.masked_fill(~(plan.stands_for | plan.tile_map.to_mask()), -torch.inf)
    return TileCentroids(moments.keys, moments.values, bias)


def rest_part(
    plan: Plan,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    mask: Tensor | None,
    keep: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of the rest alone, a part for `merge_attention`.

    For the arguments see `centroids` and `skipped`.
    """
    tiles = skipped(plan, keep)
    q_tiling, k_tiling = plan.tile_map.q_tiling, plan.tile_map.k_tiling
    if plan.rest == "means":
        means = centroids(plan, q, k, v, scale, mask)
        assert means.bias is not None
        none = TileMap.from_mask(torch.zeros_like(tiles), q_tiling, k_tiling)
        means = means._replace(bias=means.bias.masked_fill(~tiles, -torch.inf))
        result = tile_attention(q, k, v, none, scale=scale, centroids=means, return_lse=True)
        assert result.lse is not None
        return result.output, result.lse
    if plan.rest in COMPANIONS:
        stats = plan.stats or stats_of(plan.tile_map, q, k, v, mask)
        labels = tile_of_key(plan.tile_map.k_tiling, k, group_of(q, k)).expand(k.shape[:3])
        weights = key_weights(mask, k, group_of(q, k))
        return companion(plan.rest, q, k, v, scale, tiles, plan.tile_map, stats, labels, weights)
    if plan.tile_map.is_fixed and (mask is None or mask.ndim == 2):
        # moments that are known already have no gradient
        known = plan.stats.moments if plan.stats and not torch.is_grad_enabled() else None
        return moment_attention(
            q, k, v, tiles, q_tiling, k_tiling, scale=scale, mask=mask, moments=known
        )
    stats = plan.stats or stats_of(plan.tile_map, q, k, v, mask)
    return moments_of_any(q, k, v, scale, tiles, plan.tile_map, stats, mask)
