"""Gates that add up how far something has moved from step to step, until it is too far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...core.denoising.tracker import DenoisingStep
from ...core.reasons import Reason
from .gate import Gate, below
from .state import BranchState, Verdict


@dataclass
class Accumulated:
    """What such a gate remembers of a branch.

    Attributes:
        error: added up since the last computed step.
        previous: what is compared, on the step before.
    """

    error: float = 0.0
    previous: torch.Tensor | None = None


class AccumulatingGate(Gate):
    """Forecasts while what has been added up since the last computed step is below a threshold.

    Attributes:
        threshold: of the sum; 0 skips nothing.
    """

    threshold: float

    def memory(self) -> Any:
        return Accumulated()

    def skips_nothing(self, total: int | None) -> bool:
        return self.threshold == 0.0

    def moved(self, step: DenoisingStep, state: BranchState) -> float | None:
        """How far it has moved since the step before, None where that cannot be known yet."""
        raise TypeError(f"{type(self).__name__} adds nothing up")

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        moved = self.moved(step, state)
        if moved is None:
            return Verdict(False, Reason.NO_HISTORY)
        state.memory.error += moved
        if self.threshold == 0.0:  # a sum below 0 (of a polynomial) must not skip anything either
            return Verdict(False, Reason.ABOVE_THRESHOLD, state.memory.error)
        return below(state.memory.error, self.threshold)

    def finished(self, step: DenoisingStep, state: BranchState, verdict: Verdict) -> None:
        if not verdict.forecast:
            state.memory.error = 0.0
