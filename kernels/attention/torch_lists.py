"""Attention over lists of keys in plain torch: tiles of any size and their centroids, on CPU.

Each query tile gathers the keys that it lists and the centroids of those that it skips, and runs
two matrix products and a softmax. A centroid is a key whose score has the logarithm of its tile's
size added; so that this costs no pass over the scores, keys have one channel more, which meets a
one in the queries. Beside clusters of a few dozen queries each call into torch shows, so there are
five to a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .call import AttentionCall, TileAttentionOutput

# Scores of one batch of queries: few enough to stay in cache.
_SCORES_AT_ONCE = 1 << 18
# Rows of the keys are cut to a multiple of this, which matrix products and gathers like.
_ALIGNED = 8


def fits(call: AttentionCall) -> bool:
    """Whether this way is open: no marks, and no mask that differs from query to query."""
    per_key = call.mask is None or call.mask.shape[2] == 1
    return call.marking is None and per_key


def run(call: AttentionCall) -> TileAttentionOutput:
    """Attend to the listed keys, and to centroids where there are any; computes in float32."""
    output = torch.empty_like(call.q)
    lse = None
    if call.return_lse:
        lse = torch.empty(call.q.shape[:3], dtype=torch.float32, device=call.q.device)
    for b in range(call.q.shape[0]):
        for h in range(call.q.shape[1]):
            _run_head(call, b, h, output[b, h], None if lse is None else lse[b, h])
    return TileAttentionOutput(output, lse, None)


def _run_head(call: AttentionCall, b: int, h: int, output: Tensor, lse: Tensor | None) -> None:
    queries, keys, values, columns = _tables(call, b, h)
    bounds = _of_head(call.tile_map.q_tiling.bounds("cpu"), b, h).tolist()
    row, listed = columns.nonzero(as_tuple=True)
    counts = torch.bincount(row, minlength=len(columns)).tolist()
    widest = max(counts)
    if not widest:
        output.zero_()
        if lse is not None:
            lse.fill_(-torch.inf)
        return
    gathered_keys = keys.new_empty(widest, keys.shape[1])
    gathered_values = values.new_empty(widest, values.shape[1])
    first = 0
    for start, end, count in zip(bounds, bounds[1:], counts, strict=False):
        index = listed[first : first + count]
        first += count
        if start == end:
            continue
        if not count:
            output[start:end] = 0
            if lse is not None:
                lse[start:end] = -torch.inf
            continue
        own_keys = torch.index_select(keys, 0, index, out=gathered_keys[:count])
        own_values = torch.index_select(values, 0, index, out=gathered_values[:count])
        rows = max(1, _SCORES_AT_ONCE // count)
        for at in range(start, end, rows):
            part = slice(at, min(at + rows, end))
            scores = queries[part] @ own_keys.T
            if lse is not None:
                lse[part] = scores.logsumexp(-1)
            output[part] = scores.softmax(-1) @ own_values


def _tables(call: AttentionCall, b: int, h: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scaled queries, keys and values of a head, and which of them each query tile lists.

    Returns:
        `(Lq, P)`, `(N, P)`, `(N, D)` and bool `(Tq, N)`: N keys and centroids of P >= D channels.
    """
    tile_map, group = call.tile_map, call.group
    dtype = torch.float64 if call.q.dtype == torch.float64 else torch.float32
    queries = call.q[b, h].to(dtype) * call.scale
    keys, values = (x[b, h // group].to(dtype) for x in (call.k, call.v))
    kept = _of_head(tile_map.to_mask(), b, h)
    sizes = _of_head(tile_map.k_tiling.sizes(tile_map.device), b, h)
    columns = kept.repeat_interleave(sizes.long(), 1, output_size=keys.shape[0])
    if call.mask is not None:
        columns = columns & _of_head(call.mask, b, h)
    if call.centroids is None:
        return queries, keys.contiguous(), values.contiguous(), columns
    mean_keys, mean_values = (x[b, h // group].to(dtype) for x in call.centroids)
    length, dim = keys.shape
    width = -(-(dim + 1) // _ALIGNED) * _ALIGNED
    extended = queries.new_zeros(queries.shape[0], width)
    extended[:, :dim], extended[:, dim] = queries, 1.0
    table = keys.new_zeros(length + len(mean_keys), width)
    table[:length, :dim], table[length:, :dim] = keys, mean_keys
    table[length:, dim] = sizes.clamp(min=1).to(dtype).log()
    columns = torch.cat([columns, ~kept & (sizes > 0)], 1)
    return extended, table, torch.cat([values, mean_values]), columns


def _of_head(tensor: Tensor, b: int, h: int) -> Tensor:
    """What `(B|1, H|1, ...)` holds for one head."""
    return tensor[b if tensor.shape[0] > 1 else 0, h if tensor.shape[1] > 1 else 0]
