"""Planner: what all attention methods come down to.

A planner looks at the queries and keys of one attention layer at one step and says which tiles to
compute; afterwards it may learn from what the kernel saw. The runtime (`runtime.py`) calls it, has
its plan carried out (`attend.py`) and keeps the planner's state, one per layer and guidance branch.
Most methods need `MaskPlanner` (`tile_planner.py`) and give nothing but their map.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ...config import AttentionConfig
from ...config.checks import made
from ...core.denoising.tracker import DenoisingStep
from ...core.patching import PatchLedger
from ...core.ranks import ALL_HEADS, HeadShare
from ...kernels import Marking, Precision, TileAttentionOutput, TileMap, TileMoments
from ...pipelines.grids import Grid
from .heads import joined
from .options import Rest, break_even_of
from .order import Order

State = dict[Any, Any]


@dataclass(frozen=True)
class LayerContext:
    """Where an attention call is.

    Attributes:
        step: generation, step and branch.
        layer: number of the attention layer, from 0, in the order in which layers run.
        layers: attention layers of the transformer.
        length: tokens of the sequence L.
        text: `(start, end)` of the text tokens in a joint sequence, None without text.
        key_mask: bool `(B, L)`, True for keys that take part; None where all do.
        grid: frames, rows and columns of the image or video tokens; None where unknown.
        conditions: `(start, end)` of the tokens of given images or frames, empty ranges where the
            call has none; None where it is not known.
        padding: `(start, end)` of tokens that fill up those of the grid, None without any.
        component: name of the transformer in its pipeline.
        share: which heads are computed here, where ranks share them: what a planner decides for
            the layer as a whole, or from all of its heads, it decides by `share.every`.
    """

    step: DenoisingStep
    layer: int
    layers: int
    length: int
    text: tuple[int, int] | None = None
    key_mask: Tensor | None = None
    grid: Grid | None = None
    conditions: tuple[int, int] | None = None
    padding: tuple[int, int] | None = None
    component: str = ""
    share: HeadShare = ALL_HEADS

    @property
    def grid_tokens(self) -> tuple[int, int] | None:
        """`(start, end)` of the tokens of the grid; None where that is not known.

        Text is at either end of the sequence, and given images or frames, or padding, next to the
        grid's tokens.
        """
        if self.grid is None:
            return None
        parts = self.text, self.conditions, self.padding
        others = sorted(part for part in parts if part and part[0] < part[1])
        count = math.prod(self.grid)
        if count + sum(end - start for start, end in others) != self.length:
            return None  # something else is in the sequence too
        start = 0
        for first, end in others:
            start = end if first == start else start
        return start, start + count

    @property
    def fraction(self) -> float:
        """Share of the denoising loop that is done, 0 at the first step; 0 where unknown."""
        return self.step.fraction


class DenseReason(StrEnum):
    """Why an attention call is computed in full; the value is its name in reports."""

    FIRST_STEPS = "dense first steps"
    DENSE_PARTS = "dense parts of the loop"
    FIRST_LAYERS = "dense first layers"
    SHORT = "short sequence"
    MIXED_DTYPES = "mixed dtypes"
    MASK = "mask"
    RESTS = "rests: not sparse enough to pay"
    TURNED_OFF = "turned off"
    WATCHED = "watched"
    OTHER = "other"

    @property
    def explained(self) -> bool:
        """Whether no more has to be reported: it was asked for, or has a warning of its own."""
        return self in _EXPLAINED


_EXPLAINED = frozenset(
    (
        DenseReason.SHORT,
        DenseReason.MIXED_DTYPES,
        DenseReason.MASK,
        DenseReason.RESTS,
        DenseReason.TURNED_OFF,
        DenseReason.WATCHED,
    )
)


@dataclass(frozen=True)
class Dense:
    """Compute this call in full.

    Attributes:
        kind: why; decisions are taken from it.
        text: why, for people; by default the name of the kind.
    """

    kind: DenseReason
    text: str = ""

    @property
    def reason(self) -> str:
        """Why, for the report."""
        return self.text or self.kind.value


class TileStats(NamedTuple):
    """What a map was made of and its rest can use again, in the order of the plan.

    Attributes:
        q_means: mean query of each query tile, `(B, H, Tq, D)`.
        moments: of the key tiles.
    """

    q_means: Tensor
    moments: TileMoments


class Branch(Protocol):
    """A trained branch alongside the tiles: the one thing that needs arithmetic of its own."""

    def run(
        self,
        plan: Plan,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        key_mask: Tensor | None,
        backend: str | None,
        precision: Precision,
    ) -> tuple[TileAttentionOutput, Tensor | None]:
        """The tiles of the map, with their log-sum-exp, and what the branch adds to them, if any.

        Without a log-sum-exp, the rest of the map is in the output already.
        """
        ...

    def add(self, out: Tensor, extra: Tensor) -> Tensor:
        """Add what `run` gave to the output, both in the order of the model."""
        ...


@dataclass(frozen=True, eq=False)
class Plan:
    """Compute the tiles of a map.

    Attributes:
        tile_map: which tiles.
        reason: what the map is, for the report.
        marking: marks to make on the way, for `Planner.update`.
        order: of the tokens in the map; None for the order of the model.
        rest: what stands for tiles that are not computed, under the same softmax.
        stands_for: bool `(B, H, Tq, Tk)`, the tiles that `rest` stands for; None for all that are
            not computed.
        stats: what is known of the tiles already; None where the rest works it out.
        branch: what is added to the tiles; None for nothing.
        blind: whether too little is known yet for the map to be judged by its density.
        parts: plans of some heads each, in place of all of the above but the map and the reason.
        heads: int64 `(H,)`, where each head is in the parts, one after the other; None without
            parts.
        extra: what the planner wants to find again in `update`.
    """

    tile_map: TileMap
    reason: str
    marking: Marking | None = None
    order: Order | None = None
    rest: Rest = "nothing"
    stands_for: Tensor | None = None
    stats: TileStats | None = None
    branch: Branch | None = None
    blind: bool = False
    parts: Sequence[Plan] = ()
    heads: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_heads(cls, parts: Sequence[tuple[list[int], Plan]], apart: bool = False) -> Plan:
        """One plan of several, each for some heads.

        Args:
            parts: numbers of the heads, and the plan for them.
            apart: whether a single one stays a part of the plan.
        """
        if len(parts) == 1 and not apart:
            return parts[0][1]
        plans = [plan for _, plan in parts]
        numbers = [head for heads, _ in parts for head in heads]
        place = torch.tensor(numbers, device=plans[0].tile_map.device).argsort()
        tile_map = joined([(len(heads), plan.tile_map) for heads, plan in parts], place)
        return cls(tile_map, plans[0].reason, parts=tuple(plans), heads=place)


class Planner(ABC):
    """Makes the tile maps of one attention method, for one transformer.

    Attributes:
        least_tokens: sequences shorter than this are computed in full.
        least_steps: loops with fewer steps are computed in full.
        break_even: kept share above which a layer is dense for a while, and a generation from half
            way on; None for what kernels are known for.
        planning: time of making a map, as a share of that of dense attention.
        backend: of the kernels, None for the best that can run.
        precision: of the scores of the tiles that are computed.
        shares_branches: whether there is one state per layer for all guidance branches, as they
            come; else each branch has its own.
        compares_heads: whether a map of one head follows from other heads too.
    """

    least_tokens: int = 0
    least_steps: int = 0
    break_even: float | None = None
    planning: float = 0.0
    backend: str | None = None
    precision: Precision = "model"
    shares_branches: bool = False
    compares_heads: bool = False

    @property
    def pays_below(self) -> float:
        """Kept share of the attention matrix above which a layer is faster dense."""
        return break_even_of(self.break_even, self.planning)

    @abstractmethod
    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan | Dense:
        """Say what to compute.

        Args:
            q: post-RoPE queries `(B, H, L, D)`.
            k: keys `(B, Hkv, L, D)`.
            v: values `(B, Hkv, L, D)`.
            scale: of the softmax.
            context: where the call is.
            state: what the planner keeps for this layer and branch; empty at a new generation.
        """

    def update(self, plan: Plan, result: TileAttentionOutput, state: State) -> None:  # noqa: B027
        """Learn from what the kernel saw; nothing by default."""

    def promise(
        self, q: Tensor, k: Tensor, scale: float, context: LayerContext, ahead: int = 0
    ) -> Tensor | float | None:
        """Kept share of the attention matrix to expect, told cheaply before anything was learnt.

        None (the default) where that cannot be told, or the call in question is dense anyway. For
        the arguments see `plan`.

        Args:
            q: see `plan`.
            k: see `plan`.
            scale: see `plan`.
            context: see `plan`.
            ahead: how many steps behind this one the call in question is.
        """
        return None

    # -- only for planners with trained weights of the transformer --

    @property
    def needs_transformer(self) -> bool:
        """Whether it has to see the transformer itself (`attach`), and not only its calls."""
        return type(self).attach is not Planner.attach

    def attach(self, name: str, transformer: nn.Module, ledger: PatchLedger) -> None:  # noqa: B027
        """Get ready for a transformer; whatever changes on it is undone by the ledger.

        Args:
            name: component name of the transformer.
            transformer: the module.
            ledger: of the session.

        Raises:
            ConfigError: the planner does not fit this transformer.
        """

    def begin(self, name: str, step: DenoisingStep) -> None:  # noqa: B027
        """A call of that transformer begins: its weights may change for it."""

    def end(self, name: str) -> None:  # noqa: B027
        """The call has ended, or broken off: its weights are as they were."""


class Watcher(Planner):
    """A planner that only looks: every call stays dense, as it was asked for."""

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
        return Dense(DenseReason.WATCHED)


def planner_of(config: AttentionConfig) -> Planner:
    """The planner of a method's config.

    Raises:
        ConfigError: its `planner()` raises something, or returns something else.
    """
    # (mypy takes no abstract class for `type[T]`)
    return made(config, "planner", Planner)  # type: ignore[type-abstract]
