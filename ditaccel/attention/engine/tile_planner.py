"""TilePlanner and MaskPlanner: all that planners of tile maps share; a method gives its map alone.

A new attention map is one file::

    @method("checkers")
    @dataclass(frozen=True, kw_only=True)
    class CheckersConfig(FixedTileOptions):
        def planner(self) -> TilePlanner:
            return CheckersPlanner(self)

    class CheckersPlanner(MaskPlanner):
        def mask(self, q, k, v, scale, context, state):
            rows, columns = (t.tiles for t in self.tilings(q, k, context))
            return (torch.arange(rows)[:, None] + torch.arange(columns)) % 2 == 0

A method in which one option sets how much is kept names it in its config (`swept`), and its planner
reads it by `self.density_setting(context)`, so that it follows a `schedule`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import require
from ...core.denoising.tracker import DenoisingStep
from ...core.patching import PatchLedger
from ...io.adapter import Adapter
from ...kernels import TileMap, Tiling
from ...pipelines.grids import Grid
from .cubes import cube_order
from .options import (
    Ranges,
    Rest,
    TileOptions,
    TrainedOptions,
    along,
    check_within,
    is_within,
    share_of,
)
from .order import SharedOrder
from .planner import Dense, DenseReason, LayerContext, Plan, Planner, State

# Keys of a planner's state; methods add their own where they remember more than their map.
OF_THE_MAP = _SEEN, _MAP, _MADE = "step seen", "map", "step and setting of the map"


def dense_at(config: TileOptions, step: DenoisingStep) -> DenseReason | None:
    """Why the options leave a step dense in all layers; None where they do not."""
    if step.index < share_of(config.dense_steps, step.total):
        return DenseReason.FIRST_STEPS
    if is_within(config.dense_parts, step.fraction):
        return DenseReason.DENSE_PARTS
    return None


class TilePlanner(Planner):
    """Leaves dense what the options leave dense; a method gives the plan of the other calls.

    Most methods need `MaskPlanner`. A method derives from this class where more belongs to its map
    than which fixed tiles to compute (an order of the tokens, tiles that vary in size, marks).

    Args:
        config: the options.

    Attributes:
        rest: what stands for tiles that are not computed.
        weights: what was trained for the method; None without.
        max_age: steps that the state may be old (a cache forecasts some steps); then it is cleared.
    """

    max_age: int | None = None
    # (on one thread at 4096 tokens, of which methods with dearer plans tell their own)
    planning = 0.03

    def __init__(self, config: TileOptions) -> None:
        self.config: Any = config
        self.least_tokens = config.min_tokens
        self.break_even = config.break_even
        self.backend = None if config.backend == "auto" else config.backend
        self.precision = config.precision
        self.rest: Rest = config.rest or "nothing"
        self.weights: Adapter | None = None
        if isinstance(config, TrainedOptions):
            self.weights = config.adapter()

    @property
    def needs_transformer(self) -> bool:
        """See `Planner`: for its weights, where there are any."""
        own = type(self).attach is not TilePlanner.attach
        return own or self.weights is not None

    def attach(self, name: str, transformer: nn.Module, ledger: PatchLedger) -> None:
        """Check the weights against a transformer, and get them ready."""
        if self.weights is not None:
            self.weights.attach(name, transformer, ledger)

    def begin(self, name: str, step: DenoisingStep) -> None:
        """Put trained changes in place: they are trained for the steps that are sparse.

        On a dense step they would only move the output away from the model's own.
        """
        if self.weights is not None and dense_at(self.config, step) is None:
            self.weights.put(name, step.generation)

    def end(self, name: str) -> None:
        """Take them off: between calls the model is its own."""
        if self.weights is not None:
            self.weights.take_off(name)

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan | Dense:
        """See `Planner`."""
        dense = self.dense_part(context)
        if dense is not None and self._in_dense_layers(context):
            return dense
        index = context.step.index
        if self.max_age is not None and index - state.get(_SEEN, index) > self.max_age:
            state.clear()
        state[_SEEN] = index
        if dense is not None:
            self.warm_up(q, k, scale, context, state)
            return dense
        return self.sparse(q, k, v, scale, context, state)

    def dense_part(self, context: LayerContext) -> Dense | None:
        """The steps and the first layers that the options leave dense."""
        if (reason := dense_at(self.config, context.step)) is not None:
            return Dense(reason)
        if self._in_dense_layers(context):
            return Dense(DenseReason.FIRST_LAYERS)
        return None

    def _in_dense_layers(self, context: LayerContext) -> bool:
        return context.layer < share_of(self.config.dense_layers, context.layers)

    def warm_up(
        self, q: Tensor, k: Tensor, scale: float, context: LayerContext, state: State
    ) -> None:
        """See a call of the first, dense steps, in a layer that will be sparse; nothing here."""

    @abstractmethod
    def sparse(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan:
        """The plan of a call that is not left dense; for the arguments see `Planner.plan`."""

    def tilings(self, q: Tensor, k: Tensor, context: LayerContext) -> tuple[Tiling, Tiling]:
        """Of the queries and of the keys, by the options `q_tile` and `k_tile`."""
        config = self.config
        return Tiling.fixed(q.shape[2], config.q_tile), Tiling.fixed(k.shape[2], config.k_tile)

    def density_setting(self, context: LayerContext) -> float:
        """The option that sets how much is kept (`swept`), as the schedule has it at this step."""
        config = self.config
        if config.schedule:
            return along(config.schedule, context.fraction)
        return float(getattr(config, config.scheduled_option()))

    def sinks(self, context: LayerContext) -> Ranges:
        """Token ranges that every query attends to: text, and the sinks of the options.

        Raises:
            ConfigError: where a sink is in this sequence is not known, or it is all of it.
        """
        return merged([*([context.text] if context.text else []), *self._own_sinks(context)])

    def _own_sinks(self, context: LayerContext) -> list[tuple[int, int]]:
        config = self.config
        check_within("sink_tokens", config.sink_tokens, context.length)
        ranges = list(config.sink_tokens)
        if "first_frame" in config.sinks:
            tokens, grid = context.grid_tokens, context.grid
            require(
                tokens is not None and grid is not None and grid[0] > 1,
                "sinks has first_frame, but this is a picture, or a model whose order of tokens is "
                "not known; leave it out, or name the tokens in sink_tokens",
            )
            assert tokens is not None and grid is not None
            ranges.append((tokens[0], tokens[0] + grid[1] * grid[2]))
        if "conditions" in config.sinks:
            require(
                context.conditions is not None,
                "sinks has conditions, but where given images or frames are in this model's "
                "sequence is not known; name their tokens in sink_tokens instead",
            )
            assert context.conditions is not None
            ranges.append(context.conditions)
        return ranges

    def in_cubes(
        self, context: LayerContext, cube: Grid, device: torch.device, in_front: bool = False
    ) -> tuple[Tensor, Tensor] | None:
        """An order of the tokens in neighbourhoods, and its inverse; None where there is no grid.

        A first frame that is a sink stays apart: else every cube would hold a piece of it.

        Args:
            context: where the call is.
            cube: frames, rows and columns of a neighbourhood.
            device: of the answer.
            in_front: see `cube_order`.
        """
        grid, tokens = context.grid, context.grid_tokens
        if grid is None or tokens is None:
            return None
        start = tokens[0]
        if "first_frame" in self.config.sinks and grid[0] > 1:
            grid, start = (grid[0] - 1, *grid[1:]), start + grid[1] * grid[2]
        return cube_order(grid, cube, context.length, start, device, in_front)

    def with_sinks(
        self,
        mask: Tensor,
        context: LayerContext,
        tilings: tuple[Tiling, Tiling],
        orders: tuple[Tensor | None, Tensor | None] = (None, None),
        queries: bool = True,
    ) -> Tensor:
        """Tiles, and those of text and sinks: all attend to them, and text attends to all.

        Args:
            mask: bool `(B|1, H|1, Tq, Tk)`, of fixed tiles.
            context: where the call is, in the order of the model.
            tilings: of the queries and of the keys.
            orders: the token that comes to each place, int `(L,)` or `(B, H, L)`, of the queries
                and of the keys; None for the order of the model.
            queries: whether the rows of the mask are all queries, and not some of them.
        """
        keys = self.sinks(context)
        if keys:
            mask = mask | _touched(keys, context, tilings[1], orders[1], mask)[..., None, :]
        rows = keys if self.config.sink_queries else merged([context.text or (0, 0)])
        if rows and queries:
            mask = mask | _touched(rows, context, tilings[0], orders[0], mask)[..., :, None]
        return mask


class MaskPlanner(TilePlanner):
    """Makes plans of a method's masks over fixed tiles.

    Attributes:
        serves: steps that a mask serves; None for all of a generation, where it follows from the
            size alone.
    """

    serves: int | None = 1

    def sparse(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan:
        """See `TilePlanner`."""
        index = context.step.index
        tokens = self.order(context, q.device)
        order = None if tokens is None else SharedOrder(*tokens)
        setting = self.density_setting(context) if self.config.schedule else None
        made, of_setting = state.get(_MADE, (None, None))
        fits = made is not None and (
            setting == of_setting if self.serves is None else index - made < self.serves
        )
        if not fits:
            tilings, at = self.tilings(q, k, context), context
            if order is not None:
                q, k, v = order.queries(q), order.keys(k), order.keys(v)
                at = replace(context, key_mask=order.key_mask(context.key_mask))
            mask = self.mask(q, k, v, scale, at, state)
            mask = mask[(None,) * (4 - mask.ndim)].to(q.device)
            places = None if tokens is None else tokens[0]
            mask = self.with_sinks(mask, context, tilings, (places, places))
            state[_MAP], state[_MADE] = TileMap.from_mask(mask, *tilings), (index, setting)
        return Plan(state[_MAP], self.config.method, order=order, rest=self.rest)

    def order(self, context: LayerContext, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """The order in which tokens are cut into tiles, and its inverse; None for the model's own.

        `in_cubes` gives one of neighbourhoods. It may put text and others anywhere: `with_sinks`
        finds them again.
        """
        return None

    @abstractmethod
    def mask(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Tensor:
        """The tiles to compute, bool `(B|1, H|1, Tq, Tk)` or `(Tq, Tk)`; sinks are added to them.

        For the arguments see `Planner.plan`. Tensors and `context.key_mask` are in the order of
        `order`; token ranges of the context are in that of the model.
        """


def merged(ranges: Sequence[tuple[int, int]]) -> Ranges:
    """Token ranges, ascending and apart from each other; empty ones go."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(pair for pair in ranges if pair[0] < pair[1]):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return tuple(found)


def marked_tokens(ranges: Ranges, length: int) -> Tensor:
    """Which tokens are in one of the ranges, bool `(length,)` on the CPU."""
    marks = torch.zeros(length, dtype=torch.bool)
    for start, end in ranges:
        marks[start:end] = True
    return marks


def _touched(
    ranges: Ranges, context: LayerContext, tiling: Tiling, order: Tensor | None, mask: Tensor
) -> Tensor:
    """Which tiles hold a token of the ranges, bool `(B|1, H|1, T)`; see `with_sinks`."""
    if order is None:
        return tiling.touched(ranges, mask.device)
    marks = marked_tokens(ranges, context.length).to(mask.device)[order.long()]
    before = F.pad(marks[(None,) * (3 - marks.ndim)].cumsum(-1), (1, 0))
    bounds = tiling.bounds(mask.device).long()
    shape = torch.broadcast_shapes(before.shape[:2], bounds.shape[:2])
    return before.expand(*shape, -1).gather(-1, bounds.expand(*shape, -1)).diff(dim=-1) > 0
