"""Bipartite soft matching of tokens (ToMe, arXiv 2210.09461 and 2303.17604; VidToMe, 2312.10656).

The grid is cut into cells, and one token of each cell is drawn as a *target*; the others are
*sources*. Each source goes to the most similar target of its group of frames, and the most similar
ones among them merge: the target stands for them from then on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...pipelines.grids import Grid

# Scores of a matching that are held at a time.
_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Merge:
    """Which tokens of a sequence are left, and what stands for each token.

    Attributes:
        kept: int64 `(K,)`, tokens that are left, ascending.
        stands: int64 `(L,)`, place among these of the token that stands for each.
    """

    kept: Tensor
    stands: Tensor

    def shifted(self, front: int, behind: int) -> Merge:
        """The same in a longer sequence, whose other tokens do not merge.

        Args:
            front: tokens in front of those that were matched.
            behind: tokens behind them.
        """
        if not front and not behind:
            return self
        device, length, left = self.kept.device, len(self.stands), len(self.kept)
        first = torch.arange(front, device=device)
        last = torch.arange(behind, device=device)
        kept = torch.cat([first, self.kept + front, last + front + length])
        stands = torch.cat([first, self.stands + front, last + front + left])
        return Merge(kept, stands)

    def merged(self, x: Tensor, dim: int, mean: bool = False) -> Tensor:
        """The tokens that are left.

        Args:
            x: tokens along `dim`.
            dim: the axis.
            mean: whether each is the mean of those that it stands for (summed up in float32 at
                least, as any number of tokens may be among them); else it stays what it is.
        """
        if not mean:
            return x.index_select(dim, self.kept)
        shape = (*x.shape[:dim], len(self.kept), *x.shape[dim + 1 :])
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        total = wide.new_zeros(shape).index_add(dim, self.stands, wide)
        ones = wide.new_ones(len(self.stands))
        counts = ones.new_zeros(len(self.kept)).index_add(0, self.stands, ones)
        return (total / counts.view(-1, *([1] * (x.ndim - dim - 1)))).to(x.dtype)

    def unmerged(self, x: Tensor, dim: int) -> Tensor:
        """For every token, what was computed of the one that stands for it."""
        return x.index_select(dim, self.stands)


@dataclass(frozen=True)
class Group:
    """Frames among which tokens are matched.

    Attributes:
        sources: int64, tokens that may merge.
        targets: int64, tokens that they may merge into.
    """

    sources: Tensor
    targets: Tensor


def drawn(grid: Grid, cell: tuple[int, ...], seed: int) -> list[Group]:
    """Draw the targets: one token of each cell.

    All cells of the same frames share the frame that is drawn (VidToMe: one whole frame); row and
    column are drawn for each cell (ToMe).

    Args:
        grid: frames, rows and columns.
        cell: of a cell, cut off at the edges of the grid.
        seed: of the draw.
    """
    frames, rows, columns = grid
    high, wide = cell[1], cell[2]
    generator = torch.Generator().manual_seed(seed)
    tops, lefts = torch.arange(0, rows, high), torch.arange(0, columns, wide)
    found = []
    for first in range(0, frames, cell[0]):
        count = min(cell[0], frames - first)
        frame = int(torch.rand(1, generator=generator) * count)
        draw = torch.rand((2, len(tops), len(lefts)), generator=generator)
        row = tops[:, None] + (draw[0] * (rows - tops).clamp(max=high)[:, None]).long()
        column = lefts + (draw[1] * (columns - lefts).clamp(max=wide)).long()
        is_target = torch.zeros((count, rows, columns), dtype=torch.bool)
        is_target[frame, row, column] = True
        flat, start = is_target.flatten(), first * rows * columns
        found.append(Group((~flat).nonzero()[:, 0] + start, flat.nonzero()[:, 0] + start))
    return found


def removed(groups: list[Group], ratio: float) -> list[int]:
    """How many tokens of each group merge into others, at a share of all tokens."""
    sizes = [(len(group.sources), len(group.targets)) for group in groups]
    return [min(math.floor(ratio * (s + t) + 1e-9), s) for s, t in sizes]


def matched(metric: Tensor, groups: list[Group], ratio: float) -> Merge:
    """Match tokens, one matching for the whole batch.

    Args:
        metric: what tokens are compared by, by its cosine, `(B, L, C)`.
        groups: from `drawn`.
        ratio: share of the tokens that merge into others.
    """
    length, device = metric.shape[1], metric.device
    unit = torch.nn.functional.normalize(metric.float(), dim=-1)
    into = torch.arange(length, device=device)
    for group, count in zip(groups, removed(groups, ratio), strict=True):
        if not count:
            continue
        sources, targets = group.sources.to(device), group.targets.to(device)
        best, index = _best(unit[:, sources], unit[:, targets])
        chosen = best.topk(count).indices
        into[sources[chosen]] = targets[index[chosen]]
    gone = into != torch.arange(length, device=device)
    left = length - sum(removed(groups, ratio))
    kept = torch.argsort(gone.to(torch.uint8), stable=True)[:left]  # (no wait for the device)
    place = torch.zeros_like(into)
    place[kept] = torch.arange(left, device=device)
    return Merge(kept, place[into])


def _best(sources: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The best target of each source and its cosine, as a mean over the batch."""
    step = max(1, _AT_ONCE // (targets.shape[1] * len(targets)))
    parts = [(part @ targets.mT).mean(0).max(-1) for part in sources.split(step, 1)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
