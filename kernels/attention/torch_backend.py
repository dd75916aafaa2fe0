"""Tile attention in plain torch: only listed tiles are gathered and computed, on CPU and MPS."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import AttentionCall, TileAttentionOutput, row_keeps, token_bounds

# Scores that one batch of query tiles may hold. Small enough that scores and the gathered keys and
# values stay in a core's cache, large enough that the calls into torch do not show.
_SCORES_PER_BATCH = 1 << 17


class _Rows(NamedTuple):
    """Query tiles of one head that are computed together."""

    tiles: list[int]
    start: list[int]  # first token of each
    size: int  # tokens of each


def why_not(call: AttentionCall) -> str | None:
    """Why this backend cannot run, None if it can."""
    if call.needs_grad:
        return "it has no backward; call it under torch.no_grad(), or ask for 'naive'"
    return None


def run(call: AttentionCall) -> TileAttentionOutput:
    """Gather the listed keys of each query tile, and attend to them; computes in float32."""
    batch, heads, q_len, _ = call.q.shape
    lse = None
    if call.return_lse:
        lse = torch.full((batch, heads, q_len), -torch.inf, device=call.q.device)
    result = TileAttentionOutput(
        torch.empty_like(call.q), lse, call.first_kept() if call.marking is not None else None
    )
    for b in range(batch):
        for group in range(call.k.shape[1]):
            keys, values = (_in_tiles(call, tensor[b, group]) for tensor in (call.k, call.v))
            for h in range(group * call.group, (group + 1) * call.group):
                _Head(call, result, b, h, keys, values).run()
    return result


def _compute_dtype(call: AttentionCall) -> torch.dtype:
    return torch.float64 if call.q.dtype == torch.float64 else torch.float32


def _in_tiles(call: AttentionCall, tokens: Tensor) -> Tensor:
    """`(Lk, D)` to `(Tk, tile, D)`, the last tile padded with zeros, so that a gather copies whole
    tiles; unchanged for variable tiles."""
    tile = call.tile_map.k_tiling.tile
    tokens = tokens.to(_compute_dtype(call))
    if tile is None:
        return tokens.contiguous()
    padded = F.pad(tokens, (0, 0, 0, -tokens.shape[0] % tile))
    return padded.contiguous().view(-1, tile, tokens.shape[-1])


class _Head:
    """One query head; writes into `result`."""

    def __init__(
        self,
        call: AttentionCall,
        result: TileAttentionOutput,
        b: int,
        h: int,
        keys: Tensor,
        values: Tensor,
    ) -> None:
        self.call, self.result, self.b, self.h = call, result, b, h
        self.keys, self.values = keys, values
        tile_map = call.tile_map
        self.indices = _of_head(tile_map.indices, b, h)
        self.counts = _of_head(tile_map.counts, b, h).tolist()
        batch, heads = call.q.shape[:2]
        self.q_bounds = token_bounds(tile_map.q_tiling, batch, heads)[b][h]
        self.k_bounds = token_bounds(tile_map.k_tiling, batch, heads)[b][h]
        self.mask = None if call.mask is None else _of_head(call.mask, b, h)

    def run(self) -> None:
        for rows, count in self._batches():
            if count == 0:
                for start in rows.start:
                    self.result.output[self.b, self.h, start : start + rows.size] = 0
                continue
            self._attend(rows, self.indices[rows.tiles, :count].long())

    def _batches(self) -> list[tuple[_Rows, int]]:
        """Query tiles with the same shape of work, in batches that fit a core's cache."""
        alike: dict[tuple[int, int, bool], list[int]] = defaultdict(list)
        fixed = self.call.tile_map.k_tiling.is_fixed
        last = self.call.tile_map.k_tiles - 1
        has_last = self._lists_hold(last) if fixed else None
        for i, count in enumerate(self.counts):
            size = self.q_bounds[i + 1] - self.q_bounds[i]
            if size:
                alike[size, count, bool(has_last and has_last[i])].append(i)
        batches = []
        for (size, count, _), tiles in alike.items():
            per_batch = len(tiles) if count == 0 else 1
            if fixed and count and not self._skips_now:
                tile = self.call.tile_map.k_tiling.tile or 1
                per_batch = max(1, _SCORES_PER_BATCH // (size * count * tile))
            for at in range(0, len(tiles), per_batch):
                part = tiles[at : at + per_batch]
                batches.append((_Rows(part, [self.q_bounds[i] for i in part], size), count))
        return batches

    def _lists_hold(self, tile: int) -> list[bool]:
        listed = self.indices == tile
        place = torch.arange(self.indices.shape[-1], device=listed.device)
        valid = place < torch.tensor(self.counts, device=listed.device)[:, None]
        return (listed & valid).any(-1).tolist()

    @property
    def _skips_now(self) -> bool:
        return self.call.marking is not None and self.call.marking.skip_now

    def _attend(self, rows: _Rows, visited: Tensor) -> None:
        """Attention of `rows` over the tiles `visited`, int64 `(rows, n)`."""
        call = self.call
        queries = torch.stack(
            [call.q[self.b, self.h, start : start + rows.size] for start in rows.start]
        ).to(self.keys.dtype)
        # Ascending, so that the short last tile comes last and its padding can be cut off.
        tiles, place = (visited, None) if not call.tile_map.is_fixed else visited.sort(-1)
        tokens, sizes = self._tokens(tiles)
        keys = self._gather(self.keys, tiles, tokens, sum(sizes))
        scores = torch.bmm(queries, keys.transpose(1, 2))
        del keys
        if self.mask is not None:
            scores.masked_fill_(~self._allowed(rows, tokens), -torch.inf)
        if call.marking is None:
            top = scores.amax(-1, keepdim=True) if scores.shape[-1] else None
        else:
            tile_max = _tile_max(scores, sizes)
            top = tile_max.amax(-1, keepdim=True)
            kept = self._mark(rows, visited, tile_max, place)
            if self._skips_now:
                tiles, tokens, scores = _drop(tiles, tokens, scores, sizes, kept)
        if top is None or scores.shape[-1] == 0:
            self._write(rows, None, None)
            return
        values = self._gather(self.values, tiles, tokens, scores.shape[-1])
        top = top.masked_fill(top == -torch.inf, 0.0)
        torch.add(top * -call.scale, scores, alpha=call.scale, out=scores)
        total = scores.exp_().sum(-1, keepdim=True)
        output = torch.bmm(scores, values).div_(total)
        self._write(rows, output, top * call.scale + total.log())

    def _tokens(self, tiles: Tensor) -> tuple[Tensor, list[int]]:
        """Key tokens of `tiles`, int64 `(rows, keys)`, and the size of each tile."""
        tile = self.call.tile_map.k_tiling.tile
        if tile is None:
            ranges = [(self.k_bounds[j], self.k_bounds[j + 1]) for j in tiles[0].tolist()]
            parts = [torch.arange(*r, device=tiles.device) for r in ranges]
            return torch.cat(parts)[None], [end - start for start, end in ranges]
        tokens = (tiles[..., None] * tile + torch.arange(tile, device=tiles.device)).flatten(1)
        sizes = [tile] * tiles.shape[1]
        length = self.call.tile_map.k_len
        if length % tile and int(tiles[0, -1]) == self.call.tile_map.k_tiles - 1:
            sizes[-1] = length % tile
            tokens = tokens[:, : tokens.shape[1] - tile + sizes[-1]]
        return tokens, sizes

    def _gather(self, source: Tensor, tiles: Tensor, tokens: Tensor, keys: int) -> Tensor:
        """`(rows, keys, D)`."""
        if self.call.tile_map.k_tiling.is_fixed:
            gathered = source.index_select(0, tiles.flatten())
            return gathered.view(tiles.shape[0], -1, source.shape[-1])[:, :keys]
        return source.index_select(0, tokens[0])[None]

    def _allowed(self, rows: _Rows, tokens: Tensor) -> Tensor:
        """The mask for these rows and keys, bool `(rows, size|1, keys)`."""
        assert self.mask is not None
        if self.mask.shape[0] == 1:
            return self.mask[0, tokens][:, None]
        parts = [
            self.mask[start : start + rows.size][:, keys]
            for start, keys in zip(rows.start, tokens, strict=True)
        ]
        return torch.stack(parts)

    def _mark(self, rows: _Rows, visited: Tensor, tile_max: Tensor, place: Tensor | None) -> Tensor:
        """Write the marks; returns which tiles stay, in the order of `tile_max`."""
        marking = self.call.marking
        assert marking is not None and self.result.keep is not None
        in_order = tile_max
        if place is not None:
            visit = place.argsort(-1)[:, None].expand(-1, tile_max.shape[1], -1)
            in_order = tile_max.gather(-1, visit)
        running = F.pad(in_order.cummax(-1).values[..., :-1], (1, 0), value=-torch.inf)
        threshold = marking.thresholds(self.call.q.shape[1], tile_max.device)[self.h]
        keeps = row_keeps(in_order, running, self.call.scale, threshold).any(1)
        keeps[:, 0] = True
        row = torch.tensor(rows.tiles, device=visited.device)[:, None]
        self.result.keep[self.b, self.h, row, visited] = keeps
        return keeps if place is None else keeps.gather(-1, place)

    def _write(self, rows: _Rows, output: Tensor | None, lse: Tensor | None) -> None:
        """Results of each query tile to its place; rows without keys become 0 and -inf."""
        for at, start in enumerate(rows.start):
            place = (self.b, self.h, slice(start, start + rows.size))
            if output is None or lse is None:
                self.result.output[place] = 0
                continue
            empty = lse[at] == -torch.inf
            self.result.output[place] = output[at].masked_fill(empty, 0.0).to(self.call.q.dtype)
            if self.result.lse is not None:
                self.result.lse[place] = lse[at, :, 0].float()


def _of_head(tensor: Tensor, b: int, h: int) -> Tensor:
    """What `(B|1, H|1, ...)` holds for one head."""
    return tensor[b if tensor.shape[0] > 1 else 0, h if tensor.shape[1] > 1 else 0]


def _tile_max(scores: Tensor, sizes: list[int]) -> Tensor:
    """Largest score of each row in each tile, `(rows, size, n)`; -inf for a tile without keys."""
    if len(set(sizes[:-1])) <= 1 and sizes[0] > 0 and sizes[-1] > 0:
        # All tiles but the last are of one size, and are reduced at once.
        head, last = scores.split([sum(sizes[:-1]), sizes[-1]], -1)
        parts = [last.amax(-1, keepdim=True)]
        if head.shape[-1]:
            parts.insert(0, head.unflatten(-1, (-1, sizes[0])).amax(-1))
        return torch.cat(parts, -1)
    empty = scores.new_full(scores.shape[:-1], -torch.inf)
    parts = [part.amax(-1) if part.shape[-1] else empty for part in scores.split(sizes, -1)]
    return torch.stack(parts, -1)


def _drop(
    tiles: Tensor, tokens: Tensor, scores: Tensor, sizes: list[int], kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What is left of a single query tile's work without the tiles that are not `kept`."""
    column = kept[0].repeat_interleave(torch.tensor(sizes, device=kept.device))
    return tiles[:, kept[0]], tokens[:, column], scores[..., column]
