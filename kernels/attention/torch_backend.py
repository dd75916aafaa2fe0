"""Tile attention in plain torch: only listed tiles are gathered and computed, on CPU and MPS.

Clusters and centroids take another way where they can (`torch_lists`). Here, query tiles that list
equally many keys are computed in one batch. What a batch takes besides its two matrix products
(gather, maxima, exponentials) runs in buffers that stay in a core's cache, and what can wait for
the whole head (marks, output) waits: each call into torch costs microseconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from . import torch_lists
from .call import LOG2_E, AttentionCall, TileAttentionOutput, row_keeps
from .centroids import with_centroids
from .int8 import in_int8
from .torch_lists import of_head

# Scores of one batch of query tiles: few enough to stay in cache, and so many that the calls into
# torch do not show. Found by trying on 1 MB of L2 and 32 MB of L3.
SCORES_PER_BATCH = 1 << 18
# Marks are found for lists whose lengths differ by no more than this, padded to the longest.
_ALIKE = 1.25
_MARKS_AT_ONCE = 1 << 18


def why_not(call: AttentionCall) -> str | None:
    """Why this backend cannot run, None if it can."""
    return call.why_no_gradient()


def run(call: AttentionCall) -> TileAttentionOutput:
    """Attend to the listed keys of each query tile; computes in float32."""
    if call.precision == "int8":
        return in_int8(call, run)
    if (call.centroids is not None or not call.tile_map.is_fixed) and torch_lists.fits(call):
        return torch_lists.run(call)
    return with_centroids(call, _run)


def _run(call: AttentionCall) -> TileAttentionOutput:
    output = torch.empty_like(call.q)
    lse = keep = None
    if call.return_lse:
        lse = torch.empty(call.q.shape[:3], dtype=torch.float32, device=call.q.device)
    if call.marking is not None:
        keep = call.first_kept()
    result = TileAttentionOutput(output, lse, keep)
    buffers = _Buffers(call.q.device, call.q.dtype)
    for b in range(call.q.shape[0]):
        for group in range(call.k.shape[1]):
            keys, values = (
                in_tiles(t[b, group].to(buffers.dtype), call.tile_map.k_tiling.tile)
                for t in (call.k, call.v)
            )
            for h in range(group * call.group, (group + 1) * call.group):
                _Head(call, result, buffers, b, h, keys, values).run()
    return result


class _Buffers:
    """Memory that is used again by each batch: fresh pages for every product would cost a third of
    its time."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self._flat: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """A contiguous tensor with any content; the one taken before by this name is lost."""
        size = prod(shape)
        if name not in self._flat or self._flat[name].numel() < size:
            self._flat[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return self._flat[name][:size].view(shape)


def in_tiles(tokens: Tensor, tile: int | None) -> Tensor:
    """`(L, D)` to `(T, tile, D)`, the last tile padded with zeros; a copy only where one is needed.

    Variable tiles stay `(L, D)`.
    """
    if tile is None:
        return tokens.contiguous()
    short = -tokens.shape[0] % tile
    if short:
        tokens = F.pad(tokens, (0, 0, 0, short))
    return tokens.contiguous().view(-1, tile, tokens.shape[-1])


@dataclass(frozen=True)
class _Batch:
    """Query tiles that are computed together.

    Attributes:
        numbers: of the query tiles.
        rows: the same, int64 on the device.
        tiles: int64 `(query tiles, n)`, their key tiles in ascending order.
        width: keys in these.
    """

    numbers: list[int]
    rows: Tensor
    tiles: Tensor
    width: int


class _Head:
    """One query head; writes into `result`.

    Keys are gathered in ascending order, whatever the visiting order is, so that the padding of
    a short last tile comes last and can be cut off.
    """

    def __init__(
        self,
        call: AttentionCall,
        result: TileAttentionOutput,
        buffers: _Buffers,
        b: int,
        h: int,
        keys: Tensor,
        values: Tensor,
    ) -> None:
        self.call, self.result, self.buffers, self.b, self.h = call, result, buffers, b, h
        self.keys, self.values = keys, values
        tile_map = call.tile_map
        self.device = tile_map.device
        self.q_tile, self.k_tile = tile_map.q_tiling.tile, tile_map.k_tiling.tile
        self.counts: list[int] = of_head(tile_map.counts, b, h).tolist()
        listed = of_head(tile_map.indices, b, h)[:, : max(1, *self.counts)].long()
        place = torch.arange(listed.shape[1], device=self.device)
        valid = place < of_head(tile_map.counts, b, h)[:, None]
        # Entries beyond the count become the number of tiles, which sorts last and is not a tile.
        self.visited = torch.where(valid, listed, tile_map.k_tiles)
        self.tiles, self.place = self.visited.sort(-1)
        self.ascending = torch.equal(self.tiles, self.visited)
        k_bounds = of_head(tile_map.k_tiling.bounds(self.device), b, h).long()
        self.k_starts, self.k_sizes = k_bounds[:-1], k_bounds.diff()
        self.bounds = list(pairwise(of_head(tile_map.q_tiling.bounds("cpu"), b, h).tolist()))
        self.mask = None if call.mask is None else of_head(call.mask, b, h)
        self.queries = in_tiles(call.q[b, h].to(buffers.dtype), self.q_tile)
        shape = self.queries.shape[:-1]
        self.output = buffers.take("output", *self.queries.shape).zero_()
        self.top = buffers.take("top", *shape).fill_(-torch.inf)
        self.total = buffers.take("total", *shape).zero_()
        self.keep = None
        if call.marking is not None:
            self.keep = torch.zeros(
                (tile_map.q_tiles, tile_map.k_tiles + 1), dtype=torch.bool, device=self.device
            )
        self.waiting: list[tuple[_Batch, Tensor]] = []

    def run(self) -> None:
        """Compute the head and write what was asked for."""
        for batch in self._batches():
            self._attend(batch)
        self._mark_waiting()
        call, length = self.call, self.call.q.shape[2]
        total, top = (t.flatten()[:length] for t in (self.total, self.top))
        # Rows without keys have a sum of 0 and an output of 0.
        output = self.output.view(-1, self.output.shape[-1])[:length]
        output /= total.masked_fill(total == 0, 1.0)[:, None]
        self.result.output[self.b, self.h] = output.to(call.q.dtype)
        if self.result.lse is not None:
            self.result.lse[self.b, self.h] = (top * call.scale + total.log()).float()
        if self.result.keep is not None and self.keep is not None:
            self.result.keep[self.b, self.h] |= self.keep[:, :-1]

    @property
    def _skips_now(self) -> bool:
        return self.call.marking is not None and self.call.marking.skip_now

    def _batches(self) -> Iterator[_Batch]:
        """Query tiles with the same number of keys, shortest lists first."""
        alike: dict[tuple[int, bool], list[int]] = defaultdict(list)
        k_tile, short = self.k_tile or 1, 0
        if self.k_tile is not None:
            short = -self.call.tile_map.k_len % self.k_tile
        last = [False] * len(self.counts)
        if short:
            last = (self.tiles == self.call.tile_map.k_tiles - 1).any(-1).tolist()
        for i, count in enumerate(self.counts):
            if count:
                alike[count, last[i]].append(i)
        for (count, has_last), numbers in sorted(alike.items()):
            rows = torch.tensor(numbers, device=self.device)
            tiles = self.tiles[rows, :count]
            together = 1
            if self.q_tile is not None and self.k_tile is not None and not self._skips_now:
                together = max(1, SCORES_PER_BATCH // (self.q_tile * count * self.k_tile))
            for at in range(0, len(numbers), together):
                part = slice(at, at + together)
                width = count * k_tile - (short if has_last else 0)
                if self.k_tile is None:
                    width = int(self.k_sizes[tiles[at]].sum())
                if width:
                    yield _Batch(numbers[part], rows[part], tiles[part], width)

    def _attend(self, batch: _Batch) -> None:
        tiles, width = batch.tiles, batch.width
        queries = self._queries(batch)
        if queries.shape[1] == 0:
            return
        tokens = self._tokens(tiles, width)
        scores = self.buffers.take("scores", *queries.shape[:2], width)
        keys = self._gather(self.keys, tiles, tokens, width)
        torch.bmm(queries, keys.transpose(1, 2), out=scores)
        if self.mask is not None and tokens is not None:
            scores.masked_fill_(~self._allowed(batch, tokens), -torch.inf)
        if self.call.marking is None:
            top = scores.amax(-1, keepdim=True)
        else:
            tile_max = self._tile_max(scores, tiles)
            top = tile_max.amax(-1, keepdim=True)
            if self._skips_now:
                kept = self._mark([batch], tile_max)[0]
                kept = kept.gather(0, self.place[batch.numbers[0], : kept.shape[0]])
                sizes = self.k_sizes[tiles[0]]
                columns = kept.repeat_interleave(sizes)
                tiles, scores = tiles[:, kept], scores[..., columns]
                tokens = None if tokens is None else tokens[:, columns]
                width = scores.shape[-1]
            else:
                self._mark_later(batch, tile_max)
        if self.mask is not None:
            top = top.masked_fill(top == -torch.inf, 0.0)
        scale = self.call.scale * LOG2_E
        torch.add(top * -scale, scores, alpha=scale, out=scores)
        # exp2 takes a third of the time that exp takes on a CPU.
        total = scores.exp2_().sum(-1)
        values = self._gather(self.values, tiles, tokens, width)
        self._store(batch, torch.bmm(scores, values), top[..., 0], total)

    def _queries(self, batch: _Batch) -> Tensor:
        """`(query tiles, rows, D)`."""
        if self.q_tile is None:
            return self.queries[None, slice(*self.bounds[batch.numbers[0]])]
        if len(batch.numbers) == 1:
            return self.queries[batch.numbers[0]][None]
        buffer = self.buffers.take("queries", len(batch.numbers), *self.queries.shape[1:])
        return torch.index_select(self.queries, 0, batch.rows, out=buffer)

    def _store(self, batch: _Batch, output: Tensor, top: Tensor, total: Tensor) -> None:
        """Keep what the whole head is finished with at once."""
        for whole, part in ((self.output, output), (self.top, top), (self.total, total)):
            if self.q_tile is None:
                whole[slice(*self.bounds[batch.numbers[0]])] = part[0]
            else:
                whole.index_copy_(0, batch.rows, part)

    def _tokens(self, tiles: Tensor, width: int) -> Tensor | None:
        """Key tokens of `tiles`, `(query tiles, width)`; None where whole tiles are gathered."""
        if self.k_tile is not None:
            if self.mask is None:
                return None
            inside = torch.arange(self.k_tile, device=self.device)
            return (tiles[..., None] * self.k_tile + inside).flatten(1)[:, :width]
        sizes = self.k_sizes[tiles[0]]
        shift = self.k_starts[tiles[0]] - (sizes.cumsum(0) - sizes)
        return (torch.arange(width, device=self.device) + shift.repeat_interleave(sizes))[None]

    def _gather(self, source: Tensor, tiles: Tensor, tokens: Tensor | None, width: int) -> Tensor:
        """Keys or values of `tiles`, `(query tiles, width, D)`; keys are lost to values."""
        dim = source.shape[-1]
        if self.k_tile is not None:
            gathered = self.buffers.take("gathered", tiles.numel(), self.k_tile, dim)
            torch.index_select(source, 0, tiles.flatten(), out=gathered)
            return gathered.view(tiles.shape[0], -1, dim)[:, :width]
        assert tokens is not None
        gathered = self.buffers.take("gathered", width, dim)
        return torch.index_select(source, 0, tokens[0], out=gathered)[None]

    def _allowed(self, batch: _Batch, tokens: Tensor) -> Tensor:
        """The mask, bool `(query tiles, rows|1, keys)`; rows past the end see all keys."""
        assert self.mask is not None
        if self.mask.shape[0] == 1:
            return self.mask[0, tokens][:, None]
        parts = []
        for number, keys in zip(batch.numbers, tokens, strict=True):
            start, end = self.bounds[number]
            missing = 0 if self.q_tile is None else self.q_tile - (end - start)
            parts.append(F.pad(self.mask[start:end, keys], (0, 0, 0, missing), value=True))
        return torch.stack(parts)

    def _tile_max(self, scores: Tensor, tiles: Tensor) -> Tensor:
        """Largest score of each row in each tile, `(query tiles, rows, n)`; -inf without keys."""
        if self.k_tile is None:
            by_key = scores[0].T.contiguous()
            lengths = self.k_sizes[tiles[0]]
            return torch.segment_reduce(by_key, "max", lengths=lengths, initial=-torch.inf).T[None]
        whole = scores.shape[-1] // self.k_tile * self.k_tile
        tile_max = scores[..., :whole].unflatten(-1, (-1, self.k_tile)).amax(-1)
        if whole == scores.shape[-1]:
            return tile_max
        return torch.cat([tile_max, scores[..., whole:].amax(-1, keepdim=True)], -1)

    def _mark_later(self, batch: _Batch, tile_max: Tensor) -> None:
        """Collect maxima of lists that are about as long, and mark them together."""
        if self.waiting:
            first = self.waiting[0][1]
            held = sum(part.numel() for _, part in self.waiting)
            if (
                first.shape[1] != tile_max.shape[1]
                or tile_max.shape[2] > _ALIKE * first.shape[2]
                or held > _MARKS_AT_ONCE
            ):
                self._mark_waiting()
        self.waiting.append((batch, tile_max))

    def _mark_waiting(self) -> None:
        if not self.waiting:
            return
        longest = max(tile_max.shape[-1] for _, tile_max in self.waiting)
        parts = [
            F.pad(tile_max, (0, longest - tile_max.shape[-1]), value=-torch.inf)
            for _, tile_max in self.waiting
        ]
        self._mark([batch for batch, _ in self.waiting], torch.cat(parts))
        self.waiting.clear()

    def _mark(self, batches: list[_Batch], tile_max: Tensor) -> Tensor:
        """Note which tiles stay; returns it in visiting order, bool `(query tiles, n)`.

        Args:
            batches: the query tiles.
            tile_max: `(query tiles, rows, n)`, in ascending order of the tiles.
        """
        marking = self.call.marking
        assert marking is not None and self.keep is not None
        rows = torch.cat([batch.rows for batch in batches])
        width = tile_max.shape[-1]
        if not self.ascending:
            # Where the tile visited n-th stands in ascending order; padding keeps its place.
            order = self.place[rows, :width].argsort(-1)
            tile_max = tile_max.gather(-1, order[:, None].expand_as(tile_max))
        by_visit = tile_max.permute(2, 0, 1).contiguous()
        threshold = marking.thresholds(self.call.q.shape[1], self.device)[self.h]
        keeps = row_keeps(by_visit[1:], _running_max(by_visit)[:-1], self.call.scale, threshold)
        self._exclude_padding(batches, keeps)
        keep = F.pad(keeps.any(-1).T, (1, 0), value=True)
        self.keep[rows[:, None], self.visited[rows, :width]] = keep
        return keep

    def _exclude_padding(self, batches: list[_Batch], keeps: Tensor) -> None:
        """Rows past the end of a short last query tile want nothing; `(n, query tiles, rows)`."""
        start, end = self.bounds[-1]
        if self.q_tile is None or end - start == self.q_tile:
            return
        numbers = [number for batch in batches for number in batch.numbers]
        if len(self.bounds) - 1 in numbers:
            keeps[:, numbers.index(len(self.bounds) - 1), end - start :] = False


def _running_max(x: Tensor) -> Tensor:
    """Running maximum along the first dimension, in as many steps as its length has bits.

    `Tensor.cummax` also finds positions, and takes several times as long.
    """
    step = 1
    while step < x.shape[0]:
        x = torch.cat([x[:step], torch.maximum(x[step:], x[:-step])])
        step *= 2
    return x
