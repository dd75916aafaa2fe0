"""Planner: what all attention methods come down to.

A planner looks at the queries and keys of one attention layer at one step and says which tiles to
compute; afterwards it may learn from what the kernel saw. The seam (`processor.py`) calls it, runs
the kernel and keeps the planner's state, one per layer and guidance branch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from ..core.denoising.tracker import DenoisingStep
from ..core.patching import PatchLedger
from ..kernels import Marking, TileAttentionOutput, TileCentroids, TileMap
from ..pipelines.grids import Grid

State = dict[Any, Any]


@dataclass(frozen=True)
class LayerContext:
    """Where an attention call stands.

    Attributes:
        step: generation, step and branch.
        layer: number of the attention layer, from 0, in the order in which layers run.
        layers: attention layers of the transformer.
        length: tokens of the sequence L.
        text: `(start, end)` of the text tokens in a joint sequence, None without text.
        keys: bool `(B, L)`, True for keys that take part; None where all do.
        grid: frames, rows and columns of the image or video tokens; None where unknown.
    """

    step: DenoisingStep
    layer: int
    layers: int
    length: int
    text: tuple[int, int] | None = None
    keys: Tensor | None = None
    grid: Grid | None = None

    @property
    def fraction(self) -> float:
        """Share of the denoising loop that is done, 0 at the first step; 0 where unknown."""
        total = self.step.total
        return self.step.index / total if total else 0.0


@dataclass(frozen=True)
class Dense:
    """Compute this call in full.

    Attributes:
        reason: why, for the report.
        said: whether a warning of its own goes with it.
    """

    reason: str
    said: bool = False


@dataclass(frozen=True, eq=False)
class Plan:
    """Compute the tiles of a map.

    Attributes:
        tile_map: which tiles.
        reason: what the map is, for the report.
        marking: marks to make on the way, for `Planner.update`.
        q_order: int32 `(B, H, L)`, tokens in the order of the map's query tiles; None as they are.
        k_order: the same for keys and values.
        centroids: what stands for skipped tiles under the same softmax.
        blind: whether too little is known yet for the map to be judged by its density.
        attend: carries the plan out in place of `tile_attention`, on q, k, v as they are and the
            keys that count (bool `(B, L)` or None); `update` is not called then.
        extra: what the planner wants to find again in `update`.
    """

    tile_map: TileMap
    reason: str
    marking: Marking | None = None
    q_order: Tensor | None = None
    k_order: Tensor | None = None
    centroids: TileCentroids | None = None
    blind: bool = False
    attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class Planner(Protocol):
    """Makes the tile maps of one attention method.

    Attributes:
        least_tokens: sequences shorter than this are computed in full.
        least_steps: loops with fewer steps are computed in full.
        break_even: kept share above which a layer is dense for a while, and a generation from half
            way on; None for what the device gives.
        backend: of `tile_attention`, None for the best that can run.

    A planner with a true attribute `shares_branches` keeps one state per layer for all guidance
    branches, as they come; else each branch has its own.
    """

    least_tokens: int
    least_steps: int
    break_even: float | None
    backend: str | None

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan | Dense:
        """Say what to compute.

        Args:
            q: post-RoPE queries `(B, H, L, D)`.
            k: keys `(B, Hkv, L, D)`.
            v: values `(B, Hkv, L, D)`.
            scale: of the softmax.
            context: where the call stands.
            state: what the planner keeps for this layer and branch; empty at a new generation.
        """
        ...

    def update(self, plan: Plan, result: TileAttentionOutput, state: State) -> None:
        """Learn from what the kernel saw."""
        ...


@runtime_checkable
class Promising(Protocol):
    """A planner that can tell cheaply, before it has learnt, what it would keep at best."""

    def promise(
        self, q: Tensor, k: Tensor, scale: float, context: LayerContext
    ) -> Tensor | float | None:
        """Kept share of the attention matrix to expect; None where this call is dense anyway.

        For the arguments see `Planner.plan`.
        """
        ...


class Watcher(ABC):
    """A planner that only looks: by its nature every call stays dense, which is no fault."""

    least_tokens = 0
    least_steps = 0
    break_even: float | None = None
    backend: str | None = None

    @abstractmethod
    def look(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> None:
        """See a call before it is computed; for the arguments see `Planner.plan`."""

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan | Dense:
        """Look, and leave the call dense."""
        self.look(q, k, v, scale, context, state)
        return Dense("watched")

    def update(self, plan: Plan, result: TileAttentionOutput, state: State) -> None:
        """Never called: there is no plan to learn from."""
        raise AssertionError("a watcher plans nothing")


@runtime_checkable
class Attaching(Protocol):
    """A planner that must see the transformer first: it has weights for it."""

    def attach(self, name: str, transformer: nn.Module, ledger: PatchLedger) -> None:
        """Get ready for a transformer; whatever changes on it is undone by the ledger.

        Args:
            name: component name of the transformer.
            transformer: the module.
            ledger: of the session.

        Raises:
            ConfigError: the planner does not fit this transformer.
        """
        ...

    def begin(self, name: str, step: DenoisingStep) -> None:
        """A call of that transformer begins: its weights may change for it."""
        ...

    def end(self, name: str) -> None:
        """The call has ended, or broken off: its weights are as they were."""
        ...
