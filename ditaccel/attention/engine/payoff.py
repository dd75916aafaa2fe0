"""Does a tile map pay? A layer that would keep too much of its attention matrix stays dense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .options import break_even_of
from .planner import LayerContext, Plan, Planner, State

# Where the density of a map can be read without waiting for the device.
_READABLE = ("cpu",)
RESTS = 6  # steps that such a layer is dense, before it is looked at again


@dataclass(frozen=True)
class Pause:
    """Steps at which a layer is dense because it is not sparse enough.

    Attributes:
        until: last one of them.
        kept: share of the attention matrix that its map keeps.
        promised: whether a few queries told so, and no map was made.
    """

    until: int
    kept: Tensor
    promised: bool


@dataclass(eq=False)
class LayerState:
    """What is remembered of one layer and branch (or of the layer, where branches share it).

    Attributes:
        fingerprint: shapes, dtype and device of its tensors.
        planner: the planner's own, empty at a new generation and where those change.
        pause: the last one.
        promises: whether a few queries told that it will be sparse enough.
    """

    fingerprint: tuple[object, ...]
    planner: State = field(default_factory=dict)
    pause: Pause | None = None
    promises: bool = False

    def paused(self, step: int) -> Pause | None:
        """The pause that this step falls into."""
        return self.pause if self.pause is not None and step <= self.pause.until else None

    def begin_pause(self, step: int, kept: Tensor, promised: bool) -> Pause:
        """Rest from the next step on."""
        self.pause, self.promises = Pause(step + RESTS, kept, promised), False
        return self.pause


class Payoff:
    """Judges the layers of one transformer in one generation.

    Args:
        name: component name of the transformer.
        planner: of the attention method.
        warn: called with one line when nothing pays.

    Attributes:
        warned: whether that was reported.
    """

    def __init__(self, name: str, planner: Planner, warn: Callable[[str], None]) -> None:
        self._name, self._planner, self._warn = name, planner, warn
        self.warned = False
        self._judged = False

    def _limit(self, device: torch.device) -> float:
        """Kept share of the attention matrix above which a layer is faster dense."""
        return break_even_of(self._planner.break_even, device.type)

    def cannot_pay(
        self, q: Tensor, k: Tensor, scale: float, at: LayerContext, state: LayerState
    ) -> Pause | None:
        """A pause, where a few queries show that a planner that must run to learn keeps too much.

        Asked before it begins, and after every pause. (On a GPU the answer would have to be waited
        for, and there little is lost by trying.)
        """
        limit = self._limit(q.device)
        if limit >= 1 or q.device.type not in _READABLE or state.promises:
            return None
        promised = self._planner.promise(q, k, scale, at)
        if promised is None:
            return None
        kept = torch.as_tensor(promised)
        if kept > limit:
            return state.begin_pause(at.step.index, kept, promised=True)
        state.promises = True
        return None

    def too_full(self, plan: Plan, step: int, state: LayerState) -> Pause | None:
        """A pause, where a map keeps too much.

        A map that is made again each time need not be run for it; one that learns from being run
        (`Plan.marking`) has done so.
        """
        device = plan.tile_map.counts.device
        if plan.blind or device.type not in _READABLE:
            return None
        kept = plan.tile_map.densities().mean()
        if kept <= self._limit(device):
            return None
        return state.begin_pause(step, kept, promised=False)

    def warn_pausing(self, densities: Sequence[Tensor]) -> None:
        """Warn, once in a generation, that no layer is sparse enough."""
        if self.warned:
            return
        self.warned = True
        limit = 100 * self._limit(densities[0].device)
        self._warn(
            f"{self._name}: {_percent(densities):.0f} % of the attention would be kept, and here "
            f"that pays below {limit:.0f} %: its layers stay dense, and are looked at again every "
            f"{RESTS} steps; choose a more aggressive setting, or leave attention alone for this "
            "model"
        )

    def gives_up(self, densities: Sequence[Tensor]) -> str:
        """Why the rest of the generation is dense, judged once, half-way; empty where it is not."""
        if self._judged or not densities:
            return ""
        self._judged = True
        kept = _percent(densities)
        if kept <= 100 * self._limit(densities[0].device):
            return ""
        return (
            f"after half of the steps {kept:.0f} % of the attention is still kept where that was "
            "tried: not worth its cost, so the rest of this generation is dense; choose a more "
            "aggressive setting, or leave attention alone for this model"
        )


def _percent(densities: Sequence[Tensor]) -> float:
    return 100 * sum(map(float, densities)) / len(densities)
