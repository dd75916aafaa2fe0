"""Adaptive Taylor: the interval follows the forecast's own error, as step sizes do in ODE solvers.

A computed step shows what the forecasts of the gap before it left in the latents. With order m
that error grows like C g^(m+2) with the gap g, so one measured error gives the gap that meets a
tolerance (Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, section II.4). No
block runs on a forecast step, and what is measured is the error that matters, not a proxy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..config import Example, method, require
from ..core.denoising.schedule import Known
from ..core.denoising.tracker import DenoisingStep
from ..core.reasons import Reason
from ..errors import ConfigError
from .engine.correction import not_as_given, why_not
from .engine.gaps import GapEnd
from .engine.gate import Gate, StepRules
from .engine.options import (
    BudgetOptions,
    Coordinate,
    Correction,
    DifferenceOptions,
    ForecastTarget,
    Guidance,
    TargetOptions,
)
from .engine.policy import CachePolicy
from .engine.state import BranchState, Verdict

# Early steps decide what is drawn: an error of a thousandth there has turned a background from dark
# to light. So a share of the loop is computed first, however long it is.
BASE_WARMUP = 0.35
BASE_GUIDANCE = "independent"
_LEAST = 3  # steps that such a share stands for, at least
# Distance of computed steps where errors cannot be measured: the least that skips something.
_BLIND = 2
# Most that a gap may grow at once. ODE solvers often allow twice, which overshot on the samples
# where tolerances were large.
GROWTH = 1.5


@dataclass
class StepSize:
    """What is remembered of a branch.

    Attributes:
        gap: distance to the next computed step.
        error: what the last gap left in the latents, None before the first one has ended.
    """

    gap: int = 1
    error: float | None = None


@dataclass
class StepSizeGate(Gate):
    """Error control as in adaptive ODE solvers: the local error in the latents sets the gap.

    A computed step shows what the forecasts of the gap before it left in the latents. With
    forecasts of order m that error grows like gap^(m+2), which gives the gap that just meets the
    tolerance.
    """

    tolerance: float
    order: int
    max_interval: int
    safety: float = 0.9
    needs_gaps = True

    def memory(self) -> StepSize:
        return StepSize()

    def skips_nothing(self, total: int | None) -> bool:
        return self.tolerance == 0.0 or self.max_interval == 1

    def check(self, step: DenoisingStep) -> None:
        if step.known is Known.OTHER and step.schedule is not None and not step.is_last:
            raise ConfigError(
                not_as_given(step)
                or "adaptive_taylor weights errors by noise levels, and this loop runs at other "
                "timesteps than its scheduler's, or gives each frame its own; use a caching method "
                "that decides without them"
            )

    def falls_back(self, step: DenoisingStep) -> str:
        known = step.tangent is not None or step.known is Known.OTHER
        if self.skips_nothing(step.total) or known:
            return ""
        followed = step.known is Known.FOLLOWED
        advice = "another scheduler" if followed else "scheduler= or sigmas= in accelerate"
        return (
            f"adaptive_taylor cannot measure what forecasts leave in the latents: {why_not(step)}; "
            f"every second step is computed instead, and {advice} would let it measure"
        )

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        gap, error = state.memory.gap, state.memory.error
        if step.tangent is None and not self.skips_nothing(step.total):
            gap = _BLIND
        if step.index - state.last_index >= gap:
            return Verdict(False, Reason.GAP_REACHED, error, f"gap of {gap} reached")
        return Verdict(True, Reason.WITHIN_GAP, error, f"within the gap of {gap}")

    def gap_ended(self, state: BranchState, end: GapEnd, left: torch.Tensor) -> None:
        error = float(left)
        gap = 1
        if self.tolerance > 0.0 and math.isfinite(error):
            ideal = (
                self.safety
                * end.length
                * (self.tolerance / max(error, 1e-12)) ** (1.0 / (self.order + 2))
            )
            # one lucky forecast is not a trend
            longest = min(max(GROWTH * end.length, end.length + 1.0), float(self.max_interval))
            gap = int(min(max(ideal, 1.0), longest))
        state.memory.gap, state.memory.error = gap, error


@method("adaptive_taylor", base={"warmup": BASE_WARMUP, "guidance": BASE_GUIDANCE})
@dataclass(frozen=True, kw_only=True)
class AdaptiveTaylorConfig(BudgetOptions, DifferenceOptions, TargetOptions):
    """The forecast's own error sets the distance of computed steps, as step sizes in ODE solvers.

    Args:
        tolerance: error that one gap may leave in the latents, as mean absolute error by their
            mean absolute value, worst sample of the batch, >= 0; 0 is exact. Larger is faster.
        warmup: first steps that are computed: a number of them, more than `order`, or a share of
            the loop's steps below 1 (then at least 3). None: the family's own, else 0.35.
        final: last steps that are computed.
        max_interval: largest distance of computed steps.
        few: in a loop of 4 to 12 steps, where there is no time to measure errors: skip the last
            step and every second one before it, so many of them at most, and reuse the output
            before each (`engine/few_steps.py`). 0 leaves such loops to the error control as well.
        guidance: as in `ForecastOptions`. None: the family's own, else `independent`.

    All other options are those of `TargetOptions`, `DifferenceOptions` and `BudgetOptions`.
    """

    tolerance: float = 0.01
    warmup: int | float | None = None
    final: int = 1
    max_interval: int = 12
    few: int = 0
    target: ForecastTarget = "output"
    guidance: Guidance | None = None  # type: ignore[assignment]
    correction: Correction = "auto"
    coordinate: Coordinate = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0.0 <= self.tolerance < float("inf"),
            f"tolerance is {self.tolerance}; it must be 0 (exact) or a positive number",
        )
        if self.warmup is not None and not 0 < self.warmup < 1:
            require(
                float(self.warmup).is_integer(),
                f"warmup is {self.warmup}; give a whole number of steps, or a share below 1",
            )
            require(
                self.warmup > self.order,
                f"warmup is {self.warmup}; order {self.order} needs at least {self.order + 1}",
            )
        require(self.max_interval >= 1, f"max_interval is {self.max_interval}; give 1 or more")
        require(self.few >= 0, f"few is {self.few}; give 0 (error control) or more")

    def _rules(self, warmup: int | float) -> StepRules:
        needed = self.order + 1
        if 0 < warmup < 1:
            return StepRules(max(_LEAST, needed), self.final, needed=needed, warmup_share=warmup)
        return StepRules(int(warmup), self.final, needed=needed)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(tolerance=0), cls(tolerance=1e9, warmup=2)),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        return self.cache_policy(
            StepSizeGate(self.tolerance, self.order, self.max_interval),
            self._rules(BASE_WARMUP if self.warmup is None else self.warmup),
            guidance=self.guidance or BASE_GUIDANCE,
        )
