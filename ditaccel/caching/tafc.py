"""TAFC: a straight line in scheduler time, kept within a budget that measured errors steer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ..config import CacheConfig, Example, method, require
from ..core.denoising.tracker import DenoisingStep
from ..core.ranks import Ranks
from ..core.reasons import Reason
from .engine.forecast import relative_l1
from .engine.gate import Gate, StepRules
from .engine.options import check_options, check_threshold
from .engine.policy import CachePolicy
from .engine.state import BranchState, Call, Verdict
from .engine.targets import ResidualTarget, target

# The threshold grows from the first of these to the second over the loop.
_EARLY, _LATE = 0.7, 2.0
# Weight of a turn against a change of length, in the curvature.
_TURN = 2.0
# The curvature between two residuals of which there is only one.
_UNKNOWN = 0.01
_EPS = 1e-8
# Steps that were computed whatever the budgets say, and that those may be made of.
_CALIBRATION = (Reason.WARM_UP, Reason.FIRST_OF_EXPERT)


@dataclass
class Controller:
    """A PID loop on the logarithm of the gain: measured errors are to come out at the target.

    Attributes:
        before: error estimates of forecasts by one step, from the calibration.
        after: measured errors of forecasts by one step, from there too.
    """

    target: float | None = None
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    _log_gain: float = 0.0
    _integral: float = 0.0
    _deviation: float | None = None

    _WINDOW: ClassVar[int] = 8
    _TOLERANCE: ClassVar[float] = 2.5  # target, by the one-step error
    _REJECT: ClassVar[float] = 3.0  # budget, by the one-step estimate
    _WEIGHTS: ClassVar[tuple[float, float, float]] = (0.4, 0.05, 0.2)
    _GAINS: ClassVar[tuple[float, float]] = (0.3, 3.0)
    _WINDUP: ClassVar[float] = 2.0

    @property
    def gain(self) -> float:
        """What budgets are multiplied by."""
        return math.exp(self._log_gain)

    @property
    def budget(self) -> float | None:
        """Estimated error that a forecast may have; None while nothing is calibrated."""
        if not self.before:
            return None
        return statistics.median(self.before) * self._REJECT * self.gain

    def calibrate(self, estimate: float, measured: float) -> None:
        """Take up a forecast by one step that was not asked for."""
        for kept, value in ((self.before, estimate), (self.after, measured)):
            if math.isfinite(value) and value > 0.0:
                kept.append(value)
                del kept[: -self._WINDOW]

    def measure(self, error: float) -> None:
        """Take up the error of forecasts that were asked for."""
        target = self.target
        if target is None and self.after:
            target = statistics.median(self.after) * self._TOLERANCE
        if target is None or not math.isfinite(error):
            return
        deviation = math.log(target / max(error, 1e-12))
        change = 0.0 if self._deviation is None else deviation - self._deviation
        integral = self._integral + deviation
        proportional, summed, derived = self._WEIGHTS
        moved = self._log_gain + proportional * deviation + summed * integral + derived * change
        low, high = (math.log(gain) for gain in self._GAINS)
        self._log_gain = min(max(moved, low), high)
        if self._log_gain == moved:  # else the sum would grow while nothing follows it
            self._integral = min(max(integral, -self._WINDUP), self._WINDUP)
        self._deviation = deviation


@dataclass
class Trajectory:
    """What is remembered of a branch: numbers only, the residuals are in its history.

    Attributes:
        controller: of its gain.
        slope: mean absolute change of the residual per unit of scheduler time.
        size: mean absolute value of the newest residual.
        curvature: between the two newest residuals.
        rate: relative growth of the curvature per step.
        error: of the forecast of the newest computed step, had there been one.
        computed_at: index of the newest computed step.
        decided: index of a step, and what was decided for all branches of it.
    """

    controller: Controller
    slope: float | None = None
    size: float = 0.0
    curvature: float = _UNKNOWN
    rate: float = 0.0
    error: torch.Tensor | None = None
    computed_at: int = -1
    decided: tuple[int, Verdict] | None = None
    _seen: float | None = None
    _seen_at: int = -1

    def brake(self, computed_at: int) -> float:
        """Factor of the budgets where the curvature grows."""
        if computed_at != self._seen_at:
            before, after = self._seen, self.curvature
            steps = max(1, computed_at - self._seen_at)
            grown = 0.0 if before is None else (after - before) / max(abs(before), 1e-6)
            self.rate = grown / steps
            self._seen, self._seen_at = after, computed_at
        return max(0.3, 1.0 / (1.0 + 2.0 * max(0.0, self.rate)))


@target("scored_residual")
class ScoredResidualTarget(ResidualTarget):
    """The residual over all blocks; its forecast is compared with what a computed step gives."""

    def remember(self, call: Call, feature: torch.Tensor) -> torch.Tensor:
        history, memory = call.state.last, call.state.memory
        memory.error = None
        if len(history) > 1:
            forecast = history.forecast(call.place)
            memory.error = relative_l1(forecast, feature, ranks=call.state.ranks)
        return super().remember(call, feature)


@dataclass
class CurvatureGate(Gate):
    """Forecasts while the residual moves straight on, and no further than its budget allows."""

    threshold: float
    max_cached: float
    target_error: float | None = None
    needs_total = True

    def memory(self) -> Trajectory:
        return Trajectory(Controller(self.target_error))

    def skips_nothing(self, total: int | None) -> bool:
        return self.threshold == 0.0

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        memory = state.memory
        if memory.decided is None or memory.decided[0] != step.index:
            # a branch that falls behind the other one would spoil their difference
            votes = [self._vote(step, each) for each in state.beside if len(each.last)]
            verdict = next((vote for vote in votes if not vote.forecast), votes[0])
            for each in state.beside:
                each.memory.decided = step.index, verdict
        return memory.decided[1]

    def _vote(self, step: DenoisingStep, state: BranchState) -> Verdict:
        """What one branch alone would decide."""
        memory, controller = state.memory, state.memory.controller
        assert step.total is not None
        progress = step.index / max(1, step.total - 1)
        brake = memory.brake(state.last_index)
        threshold = self.threshold * (_EARLY + (_LATE - _EARLY) * progress)
        threshold *= controller.gain * brake
        if memory.slope is None:
            return Verdict(False, Reason.NO_HISTORY)
        distance = abs(state.place(step) - state.last.places[0])
        estimate = memory.slope * distance / (memory.size + _EPS)
        budget = controller.budget
        if not math.isfinite(estimate + memory.curvature):
            return Verdict(False, Reason.NON_FINITE, estimate)
        if budget is not None and estimate > budget * brake:
            return Verdict(False, Reason.ABOVE_THRESHOLD, estimate, "estimate above the budget")
        if memory.curvature >= threshold:
            return Verdict(False, Reason.ABOVE_THRESHOLD, memory.curvature, "curvature")
        if step.index - state.last_index - 1 >= 1.0 + self.max_cached * progress:
            return Verdict(False, Reason.LONG_GAP, memory.curvature)
        return Verdict(True, Reason.BELOW_THRESHOLD, memory.curvature)

    def finished(self, step: DenoisingStep, state: BranchState, verdict: Verdict) -> None:
        memory, places = state.memory, state.last.places
        if verdict.forecast or not places or places[0] != state.place(step):
            return
        seen = figures(state.last.features, state.ranks)
        if memory.error is not None:
            seen = torch.cat([seen, memory.error.float().reshape(1)])
        # the one wait for the device
        size, change, turned, *found = seen.tolist()
        if found and memory.slope is not None:
            measured, gap = found[0], step.index - memory.computed_at
            if verdict.reason in _CALIBRATION and gap == 1:
                distance = abs(places[0] - places[1])
                estimate = memory.slope * distance / (memory.size + _EPS)
                memory.controller.calibrate(estimate, measured)
            elif gap > 1:
                memory.controller.measure(measured)
        memory.error, memory.computed_at = None, step.index
        memory.size = size
        if len(places) > 1:
            memory.slope = change / (abs(places[0] - places[1]) + _EPS)
            memory.curvature = turned


def figures(features: Sequence[torch.Tensor], ranks: Ranks | None = None) -> torch.Tensor:
    """Where the residuals of computed steps are going, `(3,)`.

    Mean absolute value of the newest; of its change; and the curvature: relative change of length
    plus twice one minus the cosine, mean over the batch. The last two are 0 of a single residual.

    Args:
        features: residuals `(B, …)`, newest first.
        ranks: that have the other tokens, where several compute together.
    """
    after = features[0].flatten(1)
    before = features[1].flatten(1) if len(features) > 1 else after
    old, new = before.float(), after.float()
    sizes = torch.stack([x.abs().sum(dtype=torch.float32) for x in (after, after - before)])
    squares = torch.stack([(old * old).sum(1), (new * new).sum(1), (old * new).sum(1)])
    sums = torch.cat([sizes, sizes.new_tensor([after.numel()]), squares.flatten()])
    if ranks is not None:
        sums = ranks.total(sums)
    old_size, new_size, product = sums[3:].unflatten(0, (3, -1))
    old_size, new_size = old_size.sqrt() + _EPS, new_size.sqrt() + _EPS
    length = (new_size - old_size).abs() / old_size
    cosine = (product / (new_size * old_size + _EPS)).clamp(-1.0, 1.0)
    turned = length.mean() + _TURN * (1.0 - cosine).mean()
    return torch.stack([sums[0] / sums[2], sums[1] / sums[2], turned])


@method("tafc", paper="https://github.com/bijiw515/TAFC")
@dataclass(frozen=True, kw_only=True)
class TAFCConfig(CacheConfig):
    """Extrapolate the blocks' residual in scheduler time, while the trajectory stays straight.

    The residual over all blocks is carried on along the line through its two newest computed
    values, over the scheduler's own timesteps. A step is computed where that line asks for more
    change than a budget (three times the median one-step change of the calibration), where the
    residual has turned by more than `threshold`, which grows over the loop, or after a run of
    forecasts that may grow longer over the loop too. Errors that are measured at computed steps
    steer the budgets by a PID loop, separately in each guidance branch; where one branch wants to
    be computed, all are. The last step is always computed.

    As in the authors' code, but that a branch which is computed for another one's sake counts the
    run of forecasts before it as ended.

    Args:
        threshold: curvature (relative change of length, plus twice one minus the cosine between
            successive residuals) below which a step is forecast, >= 0; 0 is exact. Larger is
            faster.
        warmup: first steps that are computed. The third one gives the errors that the budgets are
            made of; with fewer there are none, and only the curvature and the run decide.
        max_cached: forecasts in a row that come on top of one, at the end of the loop.
        target_error: relative L1 error of forecasts that the PID loop steers for; None for 2.5
            times the median error of the calibration (published).
    """

    # The authors' settings for about twice the speed; 0.15, and 0.3 on FLUX, are faster.
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "flux": {"threshold": 0.04},
        "hunyuan_video": {"threshold": 0.02},
        "wan": {"threshold": 0.03},
    }

    threshold: float = 0.04
    warmup: int = 3
    max_cached: float = 6.0
    target_error: float | None = None

    def __post_init__(self) -> None:
        check_options(self)
        check_threshold(self.threshold)
        require(self.max_cached >= 0.0, f"max_cached is {self.max_cached}; it must be 0 or more")
        require(
            self.target_error is None or self.target_error > 0.0,
            f"target_error is {self.target_error}; it must be positive, or None",
        )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(threshold=0), cls(threshold=1e9, warmup=2)),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        return CachePolicy(
            gate=CurvatureGate(self.threshold, self.max_cached, self.target_error),
            rules=StepRules(warmup=self.warmup, final=1),
            target="scored_residual",
            order=1,
            coordinate="timestep",
        )
