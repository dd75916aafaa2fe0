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
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from ...kernels import TileMap, Tiling, keep_keys, keep_queries
from .options import Rest, TileOptions, share_of
from .planner import Dense, DenseReason, LayerContext, Plan, Planner, State

_SEEN, _MAP, _MADE = "step seen", "map", "step of the map"  # in a planner's state


class TilePlanner(Planner):
    """Leaves dense what the options leave dense; a method gives the plan of the other calls.

    Most methods need `MaskPlanner`. A method derives from this class where more belongs to its map
    than which fixed tiles to compute (an order of the tokens, tiles that vary in size, marks).

    Args:
        config: the options.

    Attributes:
        rest: what stands for tiles that are not computed.
        max_age: steps that the state may be old (a cache forecasts some steps); then it is cleared.
    """

    max_age: int | None = None

    def __init__(self, config: TileOptions) -> None:
        self.config: Any = config
        self.least_tokens = config.min_tokens
        self.break_even = config.break_even
        self.backend = None if config.backend == "auto" else config.backend
        self.rest: Rest = config.rest or "nothing"

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
            self.warm_up(q, k, context, state)
            return dense
        return self.sparse(q, k, v, scale, context, state)

    def dense_part(self, context: LayerContext) -> Dense | None:
        """The first steps and layers, which the options leave dense."""
        if context.step.index < share_of(self.config.dense_steps, context.step.total):
            return Dense(DenseReason.FIRST_STEPS)
        if self._in_dense_layers(context):
            return Dense(DenseReason.FIRST_LAYERS)
        return None

    def _in_dense_layers(self, context: LayerContext) -> bool:
        return context.layer < share_of(self.config.dense_layers, context.layers)

    def warm_up(self, q: Tensor, k: Tensor, context: LayerContext, state: State) -> None:
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

    @staticmethod
    def with_text(
        mask: Tensor, context: LayerContext, q_tiling: Tiling, k_tiling: Tiling
    ) -> Tensor:
        """Tiles, and those of the text: it attends to all, and all attend to it."""
        if context.text is None:
            return mask
        mask = keep_keys(mask, [context.text], k_tiling)
        return keep_queries(mask, [context.text], q_tiling)


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
        made = state.get(_MADE)
        if made is None or (self.serves is not None and index - made >= self.serves):
            tilings = self.tilings(q, k, context)
            mask = self.mask(q, k, v, scale, context, state)
            mask = self.with_text(mask[(None,) * (4 - mask.ndim)], context, *tilings)
            state[_MAP], state[_MADE] = TileMap.from_mask(mask.to(q.device), *tilings), index
        return Plan(state[_MAP], self.config.method, rest=self.rest)

    @abstractmethod
    def mask(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Tensor:
        """The tiles to compute, bool `(B|1, H|1, Tq, Tk)` or `(Tq, Tk)`; text is added to them.

        For the arguments see `Planner.plan`.
        """
