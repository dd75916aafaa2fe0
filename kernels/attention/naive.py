"""The definition of tile attention, in float64 and in plain torch: slow, and meant to be read."""

from __future__ import annotations

import torch

from ..dispatch import why_no_float64
from .call import AttentionCall, TileAttentionOutput, row_keeps, token_bounds
from .centroids import centroid_bias
from .int8 import in_int8


def why_not(call: AttentionCall) -> str | None:
    """Why the definition cannot run, None if it can."""
    return why_no_float64(call.q.device)


def run(call: AttentionCall) -> TileAttentionOutput:
    """Softmax over the keys of the listed tiles, one query tile after the other."""
    if call.precision == "int8":
        return in_int8(call, run)
    batch, heads, q_len, _ = call.q.shape
    tile_map = call.tile_map
    q_bounds = token_bounds(tile_map.q_tiling, batch, heads)
    k_bounds = token_bounds(tile_map.k_tiling, batch, heads)
    indices = tile_map.indices.expand(batch, heads, -1, -1)
    counts = tile_map.counts.expand(batch, heads, -1)
    mask = None
    if call.mask is not None:
        mask = call.mask.expand(batch, heads, q_len, call.k.shape[2])

    bias = None
    if call.centroids is not None:
        bias = centroid_bias(call).expand(batch, heads, -1, -1)
    rows_of: dict[tuple[int, int, int], torch.Tensor] = {}
    lse = torch.full((batch, heads, q_len), -torch.inf, dtype=torch.float64, device=call.q.device)
    keep = call.first_kept()
    for b in range(batch):
        for h in range(heads):
            keys = call.k[b, h // call.group].double()
            values = call.v[b, h // call.group].double()
            for i in range(tile_map.q_tiles):
                rows = slice(q_bounds[b][h][i], q_bounds[b][h][i + 1])
                scores = call.q[b, h, rows].double() @ keys.T
                if mask is not None:
                    scores = scores.masked_fill(~mask[b, h, rows], -torch.inf)
                tiles = indices[b, h, i, : int(counts[b, h, i])].tolist()
                columns = [slice(k_bounds[b][h][j], k_bounds[b][h][j + 1]) for j in tiles]
                kept = _mark(call, h, [scores[:, c] for c in columns])
                if call.marking is not None:
                    keep[b, h, i, [j for j, stays in zip(tiles, kept, strict=True) if stays]] = True
                    if call.marking.skip_now:
                        columns = [c for c, stays in zip(columns, kept, strict=True) if stays]
                listed = torch.full_like(scores, -torch.inf)
                for c in columns:
                    listed[:, c] = scores[:, c]
                logits, all_values = listed * call.scale, values
                if bias is not None and call.centroids is not None:
                    means = [x[b, h // call.group].double() for x in call.centroids[:2]]
                    of_means = call.q[b, h, rows].double() @ means[0].T * call.scale
                    logits = torch.cat([logits, of_means + bias[b, h, i].double()], -1)
                    all_values = torch.cat([values, means[1]])
                row_lse = torch.logsumexp(logits, -1, keepdim=True)
                weights = torch.exp(logits - row_lse)
                # A query without keys would have the weights exp(-inf - -inf).
                weights = weights.masked_fill(row_lse == -torch.inf, 0.0)
                rows_of[b, h, i] = weights @ all_values
                lse[b, h, rows] = row_lse[:, 0]

    output = torch.empty_like(call.q)
    for (b, h, i), attended in rows_of.items():
        output[b, h, q_bounds[b][h][i] : q_bounds[b][h][i + 1]] = attended.to(output.dtype)
    return TileAttentionOutput(
        output,
        lse.float() if call.return_lse else None,
        keep if call.marking is not None else None,
    )


def _mark(call: AttentionCall, head: int, tiles: list[torch.Tensor]) -> list[bool]:
    """Whether each visited tile stays, given its raw scores `(rows, keys)`; see `Marking`."""
    if call.marking is None or not tiles:
        return [True] * len(tiles)
    threshold = call.marking.thresholds(call.q.shape[1], call.q.device)[head]
    running_max = tiles[0].new_full((tiles[0].shape[0], 1), -torch.inf)
    kept = []
    for place, tile in enumerate(tiles):
        # The added column is not a key: it gives a tile without keys a maximum.
        tile_max = torch.cat([tile, torch.full_like(running_max, -torch.inf)], -1).amax(-1, True)
        keeps = row_keeps(tile_max, running_max, call.scale, threshold)
        kept.append(place == 0 or bool(keeps.any()))
        running_max = torch.maximum(running_max, tile_max)
    return kept
