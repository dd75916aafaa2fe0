"""Does a tile map pay? A layer that would keep too much of its attention matrix stays dense.

What is decided depends on densities alone, never on measured times: two runs of one seed give the
same picture. On a CPU a density is known at once. Elsewhere reading it would wait for the device,
so it is read a step later, when it has long been there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .planner import LayerContext, Plan, Planner, State

# Where the density of a map can be read without waiting for the device.
_READABLE = ("cpu",)
# Steps that such a layer is dense before it is looked at again; twice as many each further time.
RESTS = 6


class Reading:
    """A number on a device, to be read when it has arrived: nothing waits for it now.

    Args:
        value: a tensor of one element.
    """

    def __init__(self, value: Tensor) -> None:
        self._value, self._arrived = value, None
        if value.device.type == "cuda":
            self._value = torch.empty((), dtype=value.dtype, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(value.device))

    def read(self) -> Tensor:
        """The number, on the CPU."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._value.cpu()


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
        pauses: how many there were.
        promises: whether a few queries told that it will be sparse enough.
        reading: the last map's density that was not read yet, the step that it is of, and whether
            it was only promised.
    """

    fingerprint: tuple[object, ...]
    planner: State = field(default_factory=dict)
    pause: Pause | None = None
    pauses: int = 0
    promises: bool = False
    reading: tuple[Reading, int, bool] | None = None

    def paused(self, step: int) -> Pause | None:
        """The pause that this step falls into."""
        return self.pause if self.pause is not None and step <= self.pause.until else None

    def begin_pause(self, step: int, kept: Tensor, promised: bool) -> Pause:
        """Rest from the next step on."""
        self.pause, self.promises = Pause(step + RESTS * 2**self.pauses, kept, promised), False
        self.pauses += 1
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
        self._limit = planner.pays_below

    def cannot_pay(
        self, q: Tensor, k: Tensor, scale: float, at: LayerContext, state: LayerState
    ) -> Pause | None:
        """A pause, where a few queries show that a planner that must run to learn keeps too much.

        Asked before it begins, and after every pause. (Where the answer would have to be waited
        for, `look_ahead` asks instead, and after a pause a map is tried.)
        """
        if self._limit >= 1 or q.device.type not in _READABLE or state.promises:
            return None
        promised = self._planner.promise(q, k, scale, at)
        if promised is None:
            return None
        kept = at.share.mean(torch.as_tensor(promised))
        if kept > self._limit:
            return state.begin_pause(at.step.index, kept, promised=True)
        state.promises = True
        return None

    def look_ahead(
        self, q: Tensor, k: Tensor, scale: float, at: LayerContext, state: LayerState
    ) -> None:
        """Ask a few queries of a dense step what the next one would keep; read at the next one."""
        if self._limit >= 1 or q.device.type in _READABLE:
            return
        promised = self._planner.promise(q, k, scale, at, ahead=1)
        if promised is not None:
            kept = at.share.mean(torch.as_tensor(promised, device=q.device))
            state.reading = Reading(kept), at.step.index, True

    def was_too_full(self, step: int, state: LayerState) -> Pause | None:
        """A pause, where what was not read at an earlier step shows that it kept too much."""
        if state.reading is None or state.reading[1] >= step:
            return None
        (reading, of_step, promised), state.reading = state.reading, None
        kept = reading.read()
        return state.begin_pause(of_step, kept, promised) if kept > self._limit else None

    def too_full(self, plan: Plan, kept: Tensor, step: int, state: LayerState) -> Pause | None:
        """A pause, where a map keeps too much.

        A map that is made again each time need not be run for it; one that learns from being run
        (`Plan.marking`) has done so.

        Args:
            plan: with the map.
            kept: mean density of the map, over all heads of the layer.
            step: index of the step.
            state: of the layer.
        """
        if plan.blind or self._limit >= 1:
            return None
        if kept.device.type not in _READABLE:
            state.reading = Reading(kept), step, False
            return None
        return state.begin_pause(step, kept, promised=False) if kept > self._limit else None

    def warn_pausing(self, densities: Sequence[Tensor]) -> None:
        """Warn, once in a generation, that no layer is sparse enough."""
        if self.warned:
            return
        self.warned = True
        self._warn(
            f"{self._name}: {_percent(densities):.0f} % of the attention would be kept, and here "
            f"that pays below {100 * self._limit:.0f} %: its layers stay dense, and are looked at "
            f"again after {RESTS} steps, then after twice as many each time; choose a more "
            "aggressive setting, or leave attention alone for this model"
        )

    def gives_up(self, densities: Sequence[Tensor]) -> str:
        """Why the rest of the generation is dense, judged once, half-way; empty where it is not."""
        if self._judged or not densities:
            return ""
        self._judged = True
        kept = _percent(densities)
        if kept <= 100 * self._limit:
            return ""
        return (
            f"after half of the steps {kept:.0f} % of the attention is still kept where that was "
            "tried: not worth its cost, so the rest of this generation is dense; choose a more "
            "aggressive setting, or leave attention alone for this model"
        )


def _percent(densities: Sequence[Tensor]) -> float:
    return 100 * sum(map(float, densities)) / len(densities)
