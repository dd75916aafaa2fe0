"""Gradients of tile attention in plain torch: only listed tiles are gathered and computed.

With P the weights, recomputed from the log-sum-exp, and `delta = rowsum(dO * O) - d lse`:
`dV = P^T dO`, `dS = P * (dO V^T - delta) * scale`, `dQ = dS K`, `dK = dS^T Q` (Dao,
FlashAttention-2). Nothing of size Lq x Lk is held.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import LOG2_E, AttentionCall
from .torch_backend import in_tiles
from .torch_lists import of_head

# Scores of one batch of query tiles; there are two matrices of them here.
_SCORES_PER_BATCH = 1 << 17


def run(
    call: AttentionCall, output: Tensor, lse: Tensor, d_output: Tensor, d_lse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v for tiles of fixed size, in float32 (float64 for float64 inputs).

    Args:
        call: without marking and centroids.
        output: of the forward, `(B, H, Lq, D)`.
        lse: of the forward, `(B, H, Lq)`.
        d_output: gradient of the output.
        d_lse: gradient of the lse; None for 0.

    Returns:
        Gradients in the dtype and layout of q, k and v.
    """
    dtype = torch.float64 if call.q.dtype == torch.float64 else torch.float32
    delta = (d_output.to(dtype) * output).sum(-1)
    if d_lse is not None:
        delta = delta - d_lse
    # A row without keys: exp2(score - inf) is 0, whatever the score and the gradient of its lse.
    empty = lse == -torch.inf
    delta = delta.masked_fill(empty, 0.0)
    log2_sum = (lse.to(dtype) * LOG2_E).masked_fill(empty, torch.inf)
    d_q, d_k, d_v = (torch.empty_like(x) for x in (call.q, call.k, call.v))
    k_tile = call.tile_map.k_tiling.tile
    for b in range(call.q.shape[0]):
        for group in range(call.k.shape[1]):
            keys, values = (in_tiles(x[b, group].to(dtype), k_tile) for x in (call.k, call.v))
            sums = torch.zeros_like(keys), torch.zeros_like(values)
            for h in range(group * call.group, (group + 1) * call.group):
                tensors = (call.q, d_output, log2_sum[..., None], delta[..., None])
                rows = [x[b, h].to(dtype) for x in tensors]
                d_q[b, h] = _head(call, b, h, rows, keys, values, sums)
            for into, of_tiles in zip((d_k, d_v), sums, strict=True):
                into[b, group] = of_tiles.flatten(0, 1)[: into.shape[2]]
    return d_q, d_k, d_v


def _head(
    call: AttentionCall,
    b: int,
    h: int,
    rows: list[Tensor],
    keys: Tensor,
    values: Tensor,
    sums: tuple[Tensor, Tensor],
) -> Tensor:
    """One query head: its gradient of q; those of keys and values are added to `sums`."""
    q_tile, length = call.tile_map.q_tiling.tile or 1, rows[0].shape[0]
    queries, d_outputs = (in_tiles(x, q_tile) for x in rows[:2])
    short = -length % q_tile
    # Rows past the end weigh nothing.
    log2_sum = F.pad(rows[2], (0, 0, 0, short), value=torch.inf).view(-1, q_tile, 1)
    delta = in_tiles(rows[3], q_tile)
    masked = _masked(call, b, h)
    d_queries = torch.zeros_like(queries)
    for numbers, tiles in _batches(call, b, h):
        own, own_d = queries[numbers], d_outputs[numbers]
        own_keys = keys[tiles].flatten(1, 2)
        scores = own @ own_keys.transpose(1, 2)
        weights = scores.mul_(call.scale * LOG2_E).sub_(log2_sum[numbers]).exp2_()
        if masked is not None:
            weights.masked_fill_(masked[tiles].flatten(1)[:, None], 0.0)
        d_values = weights.transpose(1, 2) @ own_d
        d_scores = own_d @ values[tiles].flatten(1, 2).transpose(1, 2)
        d_scores.sub_(delta[numbers]).mul_(weights).mul_(call.scale)
        d_queries[numbers] = d_scores @ own_keys
        for into, part in zip(sums, (d_scores.transpose(1, 2) @ own, d_values), strict=True):
            into.index_add_(0, tiles.flatten(), part.view(-1, *into.shape[1:]))
    return d_queries.flatten(0, 1)[:length]


def _masked(call: AttentionCall, b: int, h: int) -> Tensor | None:
    """Keys that are masked out or past the end, bool `(Tk, tile)`; None where there are none.

    Past the end, keys of 0 have a score of 0, whose exponential is infinite where the sum of a row
    is small enough.
    """
    tile, length = call.tile_map.k_tiling.tile or 1, call.k.shape[2]
    if call.mask is None and length % tile == 0:
        return None
    masked = torch.zeros(length, dtype=torch.bool, device=call.k.device)
    if call.mask is not None:
        masked = ~of_head(call.mask, b, h)[0]
    return F.pad(masked, (0, -length % tile), value=True).view(-1, tile)


def _batches(call: AttentionCall, b: int, h: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Query tiles `(n,)` that list equally many key tiles, and these `(n, count)`."""
    tile_map = call.tile_map
    indices = of_head(tile_map.indices, b, h).long()
    alike: dict[int, list[int]] = defaultdict(list)
    for i, count in enumerate(of_head(tile_map.counts, b, h).tolist()):
        if count:
            alike[count].append(i)
    of_tile = (tile_map.q_tiling.tile or 1) * (tile_map.k_tiling.tile or 1)
    for count, members in sorted(alike.items()):
        numbers = torch.tensor(members, device=indices.device)
        for part in numbers.split(max(1, _SCORES_PER_BATCH // (count * of_tile))):
            yield part, indices[part, :count]
