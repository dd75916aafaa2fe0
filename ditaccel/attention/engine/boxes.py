"""Boxes of neighbouring tokens, for maps that follow from where tokens lie and from nothing else.

Where it is not known where tokens lie, they form a line, and a box or a window of frames, rows and
columns becomes one of as many tokens.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...config import require
from ...kernels import Tiling
from ...pipelines.grids import Grid
from .options import FixedTileOptions
from .planner import LayerContext, State
from .tile_planner import MaskPlanner

# What the kernels want of a tile, at least.
_LEAST_TILE = 16


@dataclass(frozen=True, kw_only=True)
class BoxOptions(FixedTileOptions):
    """What a method with tiles that are boxes of tokens lets its user choose besides.

    Args:
        box: frames, rows and columns of a tile, which is cut off at the edges of the grid.
        q_tile: query tokens per tile; None for those of a box.
        k_tile: key tokens per tile; None for those of a box.
    """

    box: tuple[int, ...] = (2, 8, 8)
    q_tile: int | None = None  # type: ignore[assignment]
    k_tile: int | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_triple("box", self.box)


def check_triple(name: str, value: Sequence[int]) -> None:
    """Check an option of frames, rows and columns."""
    require(
        len(value) == 3 and all(n >= 1 for n in value),
        f"{name} is {list(value)}; give frames, rows and columns, such as [2, 8, 8], each 1 or "
        "more",
    )


@dataclass(frozen=True, eq=False)
class Boxes:
    """The tokens of a picture or clip, in boxes. Each axis is cut into cells; a box is a product.

    Attributes:
        grid: frames, rows and columns; of a line `(1, 1, tokens)`.
        start: place of the first of these tokens in the sequence.
        line: whether the grid is not known.
        box: frames, rows and columns of a whole box.
        places: per axis, where each coordinate comes if neighbours follow each other, int64 `(n,)`;
            neighbours are `dilation` apart.
        cells: per axis, the cell that each coordinate falls into, int64 `(n,)`.
    """

    grid: Grid
    start: int
    line: bool
    box: Grid
    places: tuple[Tensor, ...]
    cells: tuple[Tensor, ...]

    @classmethod
    def of(
        cls,
        context: LayerContext,
        box: Sequence[int],
        dilation: Sequence[int] = (1, 1, 1),
        apart: bool = False,
    ) -> Boxes:
        """Boxes of the tokens of a call.

        Args:
            context: where the call is.
            box: frames, rows and columns.
            dilation: per axis.
            apart: whether the first frame has boxes of its own.
        """
        return _boxes(*grid_or_line(context), tuple(box), tuple(dilation), apart)

    @property
    def volume(self) -> int:
        """Tokens of a whole box."""
        return math.prod(self.box)

    def labels(self, length: int) -> Tensor:
        """The box of each token of the sequence, int64 `(length,)`; -1 for text and others."""
        frames, rows, columns = self.cells
        number = frames[:, None, None] * (rows.max() + 1) + rows[:, None]
        number = (number * (columns.max() + 1) + columns).flatten()
        labels = torch.full((length,), -1)
        labels[self.start : self.start + number.numel()] = number
        return labels

    def order(self, length: int) -> tuple[Tensor, Tensor] | None:
        """The tokens box by box, others behind them, and the inverse; None where they are so."""
        labels = self.labels(length)
        order = torch.argsort(torch.where(labels < 0, labels.max() + 1, labels), stable=True)
        if bool((order.diff() == 1).all()):
            return None
        return order, torch.argsort(order)

    def spans(self, axis: int) -> tuple[Tensor, Tensor]:
        """The first and the last place of each cell of an axis, int64 `(cells,)`."""
        return _extremes(self.cells[axis], self.places[axis], self.places[axis])

    def each_sees(self, windows: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Which box has a token that sees a token of which box, bool `(boxes, boxes)`.

        Args:
            windows: per axis, the first and the last place of the keys that each coordinate of a
                query sees, int64 `(n,)`; they move on with the places of the queries, without a
                gap. A token sees another where it does so on all axes.
        """
        kept = torch.ones(1, 1, dtype=torch.uint8)
        for axis, (first, last) in enumerate(windows):
            start, end = _extremes(self.cells[axis], first, last)
            own_start, own_end = self.spans(axis)
            sees = (start[:, None] <= own_end) & (end[:, None] >= own_start)
            kept = torch.kron(kept, sees.byte())
        return kept.bool()


def _extremes(cells: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest of `first` and the largest of `last` in each cell."""
    count = int(cells.max()) + 1
    low = first.new_zeros(count).scatter_reduce_(0, cells, first, "amin", include_self=False)
    return low, last.new_zeros(count).scatter_reduce_(0, cells, last, "amax", include_self=False)


@lru_cache(maxsize=16)
def _boxes(grid: Grid, start: int, line: bool, box: Grid, dilation: Grid, apart: bool) -> Boxes:
    box, dilation = (extent(size, grid, line) for size in (box, dilation))
    places, cells = [], []
    for axis, (n, size, step) in enumerate(zip(grid, box, dilation, strict=True)):
        at = torch.arange(n)
        inner = at // step
        number = at % step * n + inner
        places.append(torch.argsort(torch.argsort(number)))
        if apart and axis == 0 and n > 1:
            inner = torch.where(at % step == 0, inner - 1, inner)
        cell = at % step * n + torch.div(inner, size, rounding_mode="floor")
        cells.append(torch.unique(cell, return_inverse=True)[1])
    return Boxes(grid, start, line, box, tuple(places), tuple(cells))


@lru_cache(maxsize=16)
def _order(boxes: Boxes, length: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
    found = boxes.order(length)
    return None if found is None else (found[0].to(device), found[1].to(device))


def grid_or_line(context: LayerContext) -> tuple[Grid, int, bool]:
    """Frames, rows and columns of the tokens, the place of the first, and whether it is a line."""
    grid, tokens = context.grid, context.grid_tokens
    if grid is not None and tokens is not None:
        return grid, tokens[0], False
    start, end = context.text or (0, 0)
    return (1, 1, context.length - (end - start)), (end if start == 0 else 0), True


def extent(size: Sequence[int], grid: Grid, line: bool) -> Grid:
    """Frames, rows and columns, cut off at the edges of a grid; as many tokens on a line."""
    if line:
        size = (1, 1, math.prod(size))
    frames, rows, columns = (min(own, n) for own, n in zip(size, grid, strict=True))
    return frames, rows, columns


def cover(kept: Tensor, labels: Tensor, q_tiling: Tiling, k_tiling: Tiling) -> Tensor:
    """The tiles that hold a pair of labels of a map, bool `(Tq, Tk)`.

    Where tiles are boxes, these are those that hold a pair of tokens; a box that lies in two tiles
    (at the edges of a grid that the box does not divide) counts for both as a whole. Tokens without
    a label (text, given images or frames) attend to all, and all attend to them.

    Args:
        kept: bool `(n, n)`, which label of a query goes with which of a key.
        labels: int64 `(L,)`, of the token at each place; -1 for tokens that are not in the map.
        q_tiling: of the queries.
        k_tiling: of the keys.
    """
    rows, columns = (_members(labels, tiling, len(kept)) for tiling in (q_tiling, k_tiling))
    return with_others(rows @ kept.float() @ columns.T > 0, labels < 0, q_tiling, k_tiling)


def with_others(mask: Tensor, others: Tensor, q_tiling: Tiling, k_tiling: Tiling) -> Tensor:
    """Tiles, and those of tokens that attend to all, and that all attend to.

    Args:
        mask: bool `(..., Tq, Tk)`.
        others: whether the token at each place is one of them, bool `(L,)` on the CPU.
        q_tiling: of the queries.
        k_tiling: of the keys.
    """
    rows, columns = (
        _members(others.long() - 1, tiling, 1)[:, 0].bool().to(mask.device)
        for tiling in (q_tiling, k_tiling)
    )
    return mask | rows[:, None] | columns


def _members(labels: Tensor, tiling: Tiling, count: int) -> Tensor:
    """Which tile holds a token of which label, float `(T, count)` of zeros and ones."""
    held = torch.zeros(tiling.tiles, count + 1)
    held[tiling.tile_of_token("cpu")[0, 0], torch.where(labels < 0, count, labels)] = 1
    return held[:, :count]


class BoxPlanner(MaskPlanner):
    """Puts tokens in the order of boxes; a method says which boxes see which."""

    serves = None

    def boxes(self, context: LayerContext) -> Boxes:
        """The boxes of a call."""
        return Boxes.of(context, self.config.box, apart="first_frame" in self.config.sinks)

    @abstractmethod
    def sees(self, boxes: Boxes, context: LayerContext) -> Tensor:
        """Which box sees which, bool `(boxes, boxes)`."""

    def order(self, context: LayerContext, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """See `MaskPlanner`."""
        return _order(self.boxes(context), context.length, device)

    def tilings(self, q: Tensor, k: Tensor, context: LayerContext) -> tuple[Tiling, Tiling]:
        """See `TilePlanner`."""
        volume = max(_LEAST_TILE, self.boxes(context).volume)
        q_tile, k_tile = self.config.q_tile or volume, self.config.k_tile or volume
        return Tiling.fixed(q.shape[2], q_tile), Tiling.fixed(k.shape[2], k_tile)

    def mask(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Tensor:
        """See `MaskPlanner`."""
        boxes = self.boxes(context)
        labels = boxes.labels(context.length)
        order = boxes.order(context.length)
        labels = labels if order is None else labels[order[0]]
        return cover(self.sees(boxes, context), labels, *self.tilings(q, k, context))
