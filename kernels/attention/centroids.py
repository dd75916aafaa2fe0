"""Tile centroids: one mean key and value stand for each tile that is skipped.

For a query q and a tile of n keys, the exact share in numerator and denominator of the softmax is
sum_j exp(s q.k_j) (v_j, 1). With every key at the mean it is n exp(s q.mean_k) (mean_v, 1), to
first order in the spread of the keys. These terms go under the same softmax as the tiles that are
computed, so that no mass is lost where much is skipped (compare SVG-EAR, arXiv 2603.08982). To
second order the sum of exponentials grows by the factor 1 + s^2 q'Cq / 2 where C is the covariance
of the tile's keys; callers that know C hand its logarithm over as a bias, for the mean of the query
tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .call import AttentionCall, TileAttentionOutput
from .merge import merge_attention

# Scores that are held at once, in elements.
_CHUNK = 1 << 24


def centroid_bias(call: AttentionCall) -> Tensor:
    """What is added to the scaled score of a key tile's centroid, by query tile.

    Returns:
        float32 `(B|1, H|1, Tq, Tk)`; -inf for tiles that are computed and for empty ones.
    """
    assert call.centroids is not None
    tile_map, bias = call.tile_map, call.centroids.bias
    weight = tile_map.k_tiling.sizes(tile_map.device).float().log()[..., None, :]
    if bias is not None:
        weight = weight + bias
    return torch.where(tile_map.to_mask(), -torch.inf, weight)


def with_centroids(
    call: AttentionCall, run: Callable[[AttentionCall], TileAttentionOutput]
) -> TileAttentionOutput:
    """Let `run`, which knows no centroids, compute the tiles, and merge centroids in."""
    if call.centroids is None:
        return run(call)
    tiles = run(replace(call, centroids=None, return_lse=True))
    assert tiles.lse is not None
    parts = (tiles.output, tiles.lse), _attend_to_centroids(call)
    output, lse = merge_attention(*parts, backend="torch")
    output = torch.empty_like(call.q).copy_(output)  # in the layout of q
    return TileAttentionOutput(output, lse if call.return_lse else None, None)


def _attend_to_centroids(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Output, as q is, and log-sum-exp `(B, H, Lq)` over the centroids of skipped tiles alone."""
    assert call.centroids is not None
    q, tiles = call.q, call.tile_map.k_tiles
    keys, values = (x.float().repeat_interleave(call.group, 1) for x in call.centroids[:2])
    bias = centroid_bias(call).expand(*q.shape[:2], -1, -1)
    tile_of = call.tile_map.q_tiling.tile_of_token(q.device).expand(q.shape[:3])
    rows = max(1, _CHUNK // (q.shape[0] * q.shape[1] * tiles))
    outputs, totals = [], []
    for start in range(0, q.shape[2], rows):
        part = q[:, :, start : start + rows]
        of_row = tile_of[:, :, start : start + rows, None].expand(-1, -1, -1, tiles)
        scores = part.float() @ keys.transpose(-1, -2) * call.scale + bias.gather(2, of_row)
        total = scores.logsumexp(-1)
        # A query that skips nothing has no share here: weights 0 instead of NaN.
        weights = (scores - total.clamp(min=-1e30)[..., None]).exp()
        outputs.append((weights @ values).to(q.dtype))
        totals.append(total)
    return torch.cat(outputs, 2), torch.cat(totals, 2)
