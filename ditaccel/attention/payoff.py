"""Does a tile map pay? A layer that would keep too much of its attention matrix stays dense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .options import break_even_of
from .planner import LayerContext, Plan, Planner, Promising, State

# Where the density of a map can be read without waiting for the device.
_READABLE = ("cpu",)
RESTING = "rests: not sparse enough to pay"
RESTS = 6  # steps that such a layer is dense, before it is looked at again


def break_even(planner: Any, device: str) -> float:
    """Kept share of the attention matrix above which a layer is faster dense.

    Args:
        planner: of the attention method, or its config.
        device: type of the device, such as `cpu`.
    """
    return break_even_of(planner.break_even, device)


@dataclass(frozen=True)
class Rest:
    """Steps at which a layer is dense because it is not sparse enough.

    Attributes:
        until: last one of them.
        kept: share of the attention matrix that its map keeps.
        promised: whether a few queries told so, and no map was made.
    """

    until: int
    kept: Tensor
    promised: bool


class Payoff:
    """Judges the layers of one transformer in one generation.

    Args:
        name: component name of the transformer.
        warn: called with one line when nothing pays.

    Attributes:
        said: whether that was said.
    """

    def __init__(self, name: str, warn: Callable[[str], None]) -> None:
        self._name, self._warn = name, warn
        self.said = False
        self._judged = False

    @staticmethod
    def resting(step: int, state: State) -> Rest | None:
        """The rest of a layer that rests at this step."""
        rest: Rest | None = state.get("rest")
        return rest if rest is not None and step <= rest.until else None

    @staticmethod
    def _rest(step: int, kept: Tensor, state: State, promised: bool) -> Rest:
        rest = state["rest"] = Rest(step + RESTS, kept, promised)
        state.pop("promises", None)
        return rest

    def cannot_pay(
        self, planner: Planner, q: Tensor, k: Tensor, scale: float, at: LayerContext, state: State
    ) -> Rest | None:
        """A rest, where a few queries show that a planner that must run to learn keeps too much.

        Asked before it begins, and after every rest. (On a GPU the answer would have to be waited
        for, and there little is lost by trying.)
        """
        device = q.device.type
        asked = isinstance(planner, Promising) and break_even(planner, device) < 1
        if not asked or device not in _READABLE or state.get("promises"):
            return None
        promised = planner.promise(q, k, scale, at)  # type: ignore[attr-defined]
        if promised is None:
            return None
        kept = torch.as_tensor(promised)
        if kept > break_even(planner, device):
            return self._rest(at.step.index, kept, state, promised=True)
        state["promises"] = True
        return None

    def too_full(self, planner: Planner, plan: Plan, step: int, state: State) -> Rest | None:
        """A rest, where a map keeps too much.

        A map that is made anew each time need not be run for it; one that learns from being run
        (`Plan.marking`) has done so.
        """
        kept = plan.tile_map.densities().mean()
        if plan.blind or kept.device.type not in _READABLE:
            return None
        if kept <= break_even(planner, kept.device.type):
            return None
        return self._rest(step, kept, state, promised=False)

    def say_resting(self, planner: Planner, densities: Sequence[Tensor]) -> None:
        """Say, once in a generation, that no layer is sparse enough."""
        if self.said:
            return
        self.said = True
        limit = 100 * break_even(planner, densities[0].device.type)
        self._warn(
            f"{self._name}: {_percent(densities):.0f} % of the attention would be kept, and here "
            f"that pays below {limit:.0f} %: its layers stay dense, and are looked at again every "
            f"{RESTS} steps; choose a more aggressive setting, or leave attention alone for this "
            "model"
        )

    def gives_up(self, planner: Planner, densities: Sequence[Tensor]) -> str:
        """Why the rest of the generation is dense, judged once, half-way; empty where it is not."""
        if self._judged or not densities:
            return ""
        self._judged = True
        kept = _percent(densities)
        if kept <= 100 * break_even(planner, densities[0].device.type):
            return ""
        return (
            f"after half of the steps {kept:.0f} % of the attention is still kept where that was "
            "tried: not worth its cost, so the rest of this generation is dense; choose a more "
            "aggressive setting, or leave attention alone for this model"
        )


def _percent(densities: Sequence[Tensor]) -> float:
    return 100 * sum(map(float, densities)) / len(densities)
