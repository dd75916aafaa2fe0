"""Attention over lists of keys in plain torch: tiles of any size and their centroids, on CPU.

Each query tile gathers the keys that it lists and the centroids of those that it skips, and runs
two matrix products and a softmax. A centroid is a key whose score has its weight added (the
logarithm of its tile's size, and more); so that this costs no pass over the scores, keys have one
channel more, which meets a one in the queries. Beside clusters of a few dozen queries each call
into torch shows, so there are six to a tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .call import AttentionCall, TileAttentionOutput
from .centroids import centroid_bias

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
    weights = None if call.centroids is None else centroid_bias(call)
    for b in range(call.q.shape[0]):
        for h in range(call.q.shape[1]):
            head = _tables(call, b, h, weights)
            _run_head(call, head, b, h, output[b, h], None if lse is None else lse[b, h])
    return TileAttentionOutput(output, lse, None)


def _run_head(
    call: AttentionCall, head: _Tables, b: int, h: int, output: Tensor, lse: Tensor | None
) -> None:
    bounds = of_head(call.tile_map.q_tiling.bounds("cpu"), b, h).tolist()
    row, listed = head.columns.nonzero(as_tuple=True)
    counts = torch.bincount(row, minlength=len(head.columns)).tolist()
    means = head.columns[:, call.k.shape[2] :].sum(1).tolist()
    widest = max(counts)
    gathered_keys = head.keys.new_empty(widest, head.keys.shape[1])
    gathered_values = head.values.new_empty(widest, head.values.shape[1])
    first = first_weight = 0
    for start, end, count, mean in zip(bounds, bounds[1:], counts, means, strict=False):
        index, weights = listed[first : first + count], head.weights[first_weight:][:mean]
        first, first_weight = first + count, first_weight + mean
        if start == end:
            continue
        if not count:
            output[start:end] = 0
            if lse is not None:
                lse[start:end] = -torch.inf
            continue
        own_keys = torch.index_select(head.keys, 0, index, out=gathered_keys[:count])
        own_values = torch.index_select(head.values, 0, index, out=gathered_values[:count])
        if mean:
            own_keys[count - mean :, call.k.shape[3]] = weights
        rows = max(1, _SCORES_AT_ONCE // count)
        for at in range(start, end, rows):
            part = slice(at, min(at + rows, end))
            scores = head.queries[part] @ own_keys.T
            if lse is not None:
                lse[part] = scores.logsumexp(-1)
            output[part] = scores.softmax(-1) @ own_values


class _Tables(NamedTuple):
    """What a head computes with: N keys, the means of tiles last, of P >= D channels.

    Attributes:
        queries: scaled, `(Lq, P)`, with a 1 in channel D where there are means.
        keys: `(N, P)`.
        values: `(N, D)`.
        columns: bool `(Tq, N)`, which of them each query tile lists.
        weights: flat, what is added to the scores of the listed means, one query tile after the
            other; it goes into channel D of the gathered keys.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    columns: Tensor
    weights: Tensor


def _tables(call: AttentionCall, b: int, h: int, weights: Tensor | None) -> _Tables:
    tile_map, group = call.tile_map, call.group
    dtype = torch.float64 if call.q.dtype == torch.float64 else torch.float32
    queries = call.q[b, h].to(dtype) * call.scale
    keys, values = (x[b, h // group].to(dtype) for x in (call.k, call.v))
    kept = of_head(tile_map.to_mask(), b, h)
    sizes = of_head(tile_map.k_tiling.sizes(tile_map.device), b, h)
    columns = kept.repeat_interleave(sizes.long(), 1, output_size=keys.shape[0])
    if call.mask is not None:
        columns = columns & of_head(call.mask, b, h)
    if call.centroids is None or weights is None:
        nothing = queries.new_empty(0)
        return _Tables(queries, keys.contiguous(), values.contiguous(), columns, nothing)
    mean_keys, mean_values = (x[b, h // group].to(dtype) for x in call.centroids[:2])
    dim = keys.shape[1]
    width = -(-(dim + 1) // _ALIGNED) * _ALIGNED
    extended = queries.new_zeros(queries.shape[0], width)
    extended[:, :dim], extended[:, dim] = queries, 1.0
    table = torch.nn.functional.pad(torch.cat([keys, mean_keys]), (0, width - dim))
    own_weights = of_head(weights, b, h).to(dtype)
    stands_in = own_weights > -torch.inf
    columns = torch.cat([columns, stands_in], 1)
    return _Tables(
        extended, table, torch.cat([values, mean_values]), columns, own_weights[stands_in]
    )


def of_head(tensor: Tensor, b: int, h: int) -> Tensor:
    """What `(B|1, H|1, ...)` holds for one head."""
    return tensor[b if tensor.shape[0] > 1 else 0, h if tensor.shape[1] > 1 else 0]
