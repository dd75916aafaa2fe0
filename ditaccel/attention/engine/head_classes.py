"""Heads sorted into classes, each with a map and an order of its own, by a look at some queries."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels import TileMap, Tiling
from ...pipelines.grids import Grid
from .boxes import grid_or_line, with_others
from .order import SharedOrder
from .planner import LayerContext, Plan, State
from .tile_planner import TilePlanner

# Elements of the largest tensors that are held at once.
_CHUNK = 1 << 26
_CLASSES, _MADE, _CHOSEN, _MAPS = "classes", "classes made for", "class of each head", "maps"


@dataclass(frozen=True, eq=False)
class HeadClass:
    """A map that some heads may have.

    Attributes:
        name: for people.
        mask: its tiles, text and sinks included, bool `(1|H, Tq, Tk)`.
        tokens: the token that comes to each place, and the inverse, int64 `(L,)`; None for the
            order of the model.
    """

    name: str
    mask: Tensor
    tokens: tuple[Tensor, Tensor] | None = None

    @property
    def density(self) -> Tensor:
        """Kept share of the tiles, `(1|H,)`."""
        return self.mask.float().mean((1, 2))

    def pairs(self, rows: Tensor, q_tiling: Tiling, k_tiling: Tiling) -> Tensor:
        """Which keys some queries attend to, bool `(1|H, S, L)`, in the order of the model.

        Args:
            rows: the queries' tokens, int64 `(S,)`.
            q_tiling: of the queries.
            k_tiling: of the keys.
        """
        q_tile, k_tile = (t.tile_of_token(rows.device)[0, 0] for t in (q_tiling, k_tiling))
        if self.tokens is not None:
            q_tile, k_tile = q_tile[self.tokens[1]], k_tile[self.tokens[1]]
        return self.mask[:, q_tile[rows]][:, :, k_tile]


class Look(NamedTuple):
    """What each class would do to each head, by some queries; heads that share keys agree.

    Attributes:
        errors: squared error of the output, as a share of the squared output, `(C, H)`.
        recall: share of the softmax mass that is kept, `(C, H)`.
    """

    errors: Tensor
    recall: Tensor


class HeadClassPlanner(TilePlanner):
    """Looks at some queries every few steps, and gives each head the map of its class.

    Attributes:
        sampled: how many queries are looked at.
        refresh: steps that one choice serves.
    """

    sampled = 64

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.refresh: int = config.refresh

    @abstractmethod
    def classes(self, q: Tensor, k: Tensor, scale: float, context: LayerContext) -> list[HeadClass]:
        """The classes that heads may have; for the arguments see `Planner.plan`."""

    def bands(self, mask: Tensor, q: Tensor, k: Tensor, context: LayerContext) -> list[HeadClass]:
        """A band along the order of the model, and where tokens have a grid by their position.

        Args:
            mask: tiles of the band (`band`).
            q: queries, `(B, H, L, D)`.
            k: keys.
            context: of the call.
        """
        found = [self.head_class("spatial", mask, None, q, k, context)]
        order = by_position(context, q.device, "first_frame" in self.config.sinks)
        if order is not None:
            found.append(self.head_class("temporal", mask, order, q, k, context))
        return found

    @abstractmethod
    def choose(
        self,
        classes: list[HeadClass],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        context: LayerContext,
    ) -> Tensor:
        """The number of the class of each head, int64 `(H,)`; heads that share keys agree."""

    def sparse(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan:
        """See `TilePlanner`."""
        index = context.step.index
        setting = self.density_setting(context) if self.config.schedule else None
        old = _MADE not in state or state[_MADE][1] != setting
        if old or index - state[_MADE][0] >= self.refresh:
            with torch.no_grad():
                if old:
                    state[_CLASSES] = self.classes(q, k, scale, context)
                chosen = self.choose(state[_CLASSES], q, k, v, scale, context).tolist()
                state[_MAPS] = self._maps(state[_CLASSES], chosen, q, k, context)
            state[_MADE] = index, setting
        group = q.shape[1] // k.shape[1]
        parts = []
        for heads, tokens, tile_map in state[_MAPS]:
            own = None if len(heads) == q.shape[1] else heads
            order = None
            if own is not None or tokens is not None:
                places, inverse = tokens or (None, None)
                order = SharedOrder(places, inverse, own, group)
            plan = Plan(tile_map, self.config.method, order=order, rest=self.rest)
            parts.append((heads, plan))
        return Plan.of_heads(parts)

    def _maps(
        self, classes: list[HeadClass], chosen: list[int], q: Tensor, k: Tensor, at: LayerContext
    ) -> list[tuple[list[int], tuple[Tensor, Tensor] | None, TileMap]]:
        """The maps of the heads, by the order of their tokens."""
        tilings = self.tilings(q, k, at)
        by_order: dict[int, list[int]] = {}
        for head, number in enumerate(chosen):
            by_order.setdefault(id(classes[number].tokens), []).append(head)
        found = []
        for heads in by_order.values():
            masks = [classes[chosen[h]].mask for h in heads]
            mask = torch.stack([m[min(h, len(m) - 1)] for h, m in zip(heads, masks, strict=True)])
            tokens = classes[chosen[heads[0]]].tokens
            found.append((heads, tokens, TileMap.from_mask(mask[None], *tilings)))
        return found

    def head_class(
        self,
        name: str,
        mask: Tensor,
        tokens: tuple[Tensor, Tensor] | None,
        q: Tensor,
        k: Tensor,
        context: LayerContext,
    ) -> HeadClass:
        """A class, with the tiles of text, sinks and tokens that are not of the grid.

        Args:
            name: of the class.
            mask: its tiles, bool `(1|H, Tq, Tk)` or `(Tq, Tk)`.
            tokens: see `HeadClass`.
            q: `(B, H, L, D)`.
            k: `(B, Hkv, L, D)`.
            context: where the call is.
        """
        tilings = self.tilings(q, k, context)
        mask = mask.to(q.device)[(None,) * (4 - mask.ndim)]
        place = None if tokens is None else tokens[0]
        grid, start, _ = grid_or_line(context)
        count = math.prod(grid)
        outside = torch.ones(context.length, dtype=torch.bool)
        outside[start : start + count] = False
        if place is not None:
            outside = outside[place.cpu()]
        mask = with_others(mask, outside, *tilings)
        return HeadClass(name, self.with_sinks(mask, context, tilings, (place, place))[0], tokens)

    def rows(self, context: LayerContext, device: torch.device) -> Tensor:
        """Tokens whose queries are looked at: some of the grid's, evenly spaced, int64 `(S,)`."""
        grid, start, _ = grid_or_line(context)
        tokens = math.prod(grid)
        count = min(self.sampled, tokens)
        return start + torch.arange(count, device=device) * tokens // count

    def look(
        self,
        classes: Sequence[HeadClass],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        context: LayerContext,
    ) -> Look:
        """See what each class would do, on some queries."""
        tilings, rows = self.tilings(q, k, context), self.rows(context, q.device)
        pairs = [one.pairs(rows, *tilings) for one in classes]
        errors, recall = [], []
        for at, weights in _probabilities(q, k, scale, context.key_mask, rows):
            values = _of_heads(v, at, q.shape[1]).float()
            dense = weights @ values
            size = dense.square().sum((0, 2, 3)).clamp(min=1e-30)
            for seen in pairs:
                own = weights * (seen if len(seen) == 1 else seen[at])
                mass = own.sum(-1, keepdim=True)
                off = own @ values / mass.clamp(min=1e-30) - dense
                errors.append(off.square().sum((0, 2, 3)) / size)
                recall.append(mass.mean((0, 2, 3)))
        group, count = q.shape[1] // k.shape[1], len(classes)

        def by_class(parts: list[Tensor]) -> Tensor:
            every = torch.stack([torch.cat(parts[number::count]) for number in range(count)])
            means = every.unflatten(1, (-1, group)).mean(2, keepdim=True)
            return means.expand(-1, -1, group).flatten(1)

        return Look(by_class(errors), by_class(recall))

    def column_mass(
        self, q: Tensor, k: Tensor, scale: float, context: LayerContext, k_tiling: Tiling
    ) -> Tensor:
        """Share of the softmax mass of some queries in each key tile, `(H, Tk)`."""
        rows = self.rows(context, q.device)
        parts = [weights.mean((0, 2)) for _, weights in _probabilities(q, k, scale, None, rows)]
        mass = torch.cat(parts)
        assert k_tiling.tile is not None
        padded = F.pad(mass, (0, -k_tiling.length % k_tiling.tile))
        return padded.unflatten(1, (-1, k_tiling.tile)).sum(2)


def _probabilities(
    q: Tensor, k: Tensor, scale: float, key_mask: Tensor | None, rows: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Softmax of some queries over all keys, `(B, some H, S, L)`, for some heads at a time."""
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    step = max(1, _CHUNK // (q.shape[0] * len(rows) * k.shape[2] * group)) * group
    for start in range(0, heads, step):
        at = slice(start, start + step)
        queries = q[:, at].index_select(2, rows).float()
        scores = queries @ _of_heads(k, at, heads).float().transpose(-1, -2) * scale
        if key_mask is not None:
            scores = scores.masked_fill(~key_mask[:, None, None], -torch.inf)
        yield at, scores.softmax(-1)


def _of_heads(x: Tensor, at: slice, heads: int) -> Tensor:
    """Keys or values of some query heads."""
    group = heads // x.shape[1]
    own = x[:, at.start // group : -(-min(at.stop, heads) // group)]
    return own if group == 1 else own.repeat_interleave(group, 1)


def band(width: float, q_tiling: Tiling, k_tiling: Tiling) -> Tensor:
    """The tiles that hold a pair of places at most `width` apart, bool `(Tq, Tk)`."""
    (first, last), (k_first, k_last) = (
        (bounds[:-1], bounds[1:] - 1)
        for bounds in (tiling.bounds("cpu")[0, 0] for tiling in (q_tiling, k_tiling))
    )
    return torch.maximum(first[:, None] - k_last, k_first - last[:, None]) <= width


def by_position(
    context: LayerContext, device: torch.device, apart: bool = False
) -> tuple[Tensor, Tensor] | None:
    """Tokens by their position in the frame, and the inverse; None where there are no frames.

    In a picture, rows stand for frames.

    Args:
        context: where the call is.
        device: of the answer.
        apart: whether the first frame stays in front: else every tile would hold a piece of it.
    """
    grid, start, line = grid_or_line(context)
    frames = grid[0] if grid[0] > 1 else grid[1]
    if line or frames == 1 or math.prod(grid) == frames:
        return None
    return _by_position(grid, start, context.length, apart and grid[0] > 1, device)


@lru_cache(maxsize=16)
def _by_position(
    grid: Grid, start: int, length: int, apart: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    count = math.prod(grid)
    inner = torch.arange(count).view(grid[0] if grid[0] > 1 else grid[1], -1)
    first = inner[:1].flatten() if apart else inner[:0].flatten()
    order = torch.arange(length)
    order[start : start + count] = start + torch.cat([first, inner[int(apart) :].T.flatten()])
    return order.to(device), torch.argsort(order).to(device)
