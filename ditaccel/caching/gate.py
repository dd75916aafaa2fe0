"""Compute or forecast? A gate decides for one branch of one step, and says why.

A decision taken from data makes the CPU wait for the GPU. Per transformer call that is once for the
gates that compare the first block, never for the schedules, and for `StepSizeGate` once per
computed step; beside it the tracker reads the timestep once per call, `basis="auto"` four errors
per remembered feature, and a generation its schedule once and one flag at its end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from ..core.denoising.schedule import Known
from ..core.denoising.tracker import DenoisingStep
from ..core.outputs import split
from ..core.reasons import Reason
from ..errors import ConfigError
from .correction import GapEnd
from .forecast import relative_l1

if TYPE_CHECKING:
    from .state import BranchState


@dataclass(frozen=True)
class Verdict:
    """What a gate decided.

    Attributes:
        forecast: True to forecast the rest of the step, False to compute it.
        reason: what decided.
        error: the figure that was compared, where there was one.
        detail: the reason in words, where they say more than its own.
    """

    forecast: bool
    reason: Reason
    error: float | None = None
    detail: str = ""

    @property
    def text(self) -> str:
        """The reason in a word or two, for people."""
        return self.detail or self.reason.value


COMPUTE_WARMUP = Verdict(False, Reason.WARM_UP)
COMPUTE_LAST = Verdict(False, Reason.LAST_STEPS)


@dataclass(frozen=True)
class StepRules:
    """What holds for all methods before the gate itself is asked.

    Attributes:
        warmup: first steps of a generation that are computed, at least.
        warmup_share: the same as a share of the loop's steps, where their number is known.
        final: last steps that are computed.
        max_consecutive: forecasts in a row at most, None for no limit.
        needed: computed steps that a forecast needs.
    """

    warmup: int = 1
    final: int = 0
    max_consecutive: int | None = None
    needed: int = 1
    warmup_share: float = 0.0

    def first(self, total: int | None) -> int:
        """First steps that are computed in a loop of so many."""
        # rounded before it is rounded up: 0.35 * 20 is a little over 7
        share = 0 if total is None else math.ceil(round(self.warmup_share * total, 6))
        return max(self.warmup, share)

    def verdict(self, step: DenoisingStep, state: BranchState) -> Verdict | None:
        """Return what the rules decide, or None to ask the gate."""
        if step.index < self.first(step.total):
            return COMPUTE_WARMUP
        if step.total is not None and step.index >= step.total - self.final:
            return COMPUTE_LAST
        if len(state.last) < self.needed:
            # a second transformer, or a branch that guidance switched on late
            return Verdict(False, Reason.NO_HISTORY)
        since = step.index - state.last_index  # not the branch's calls: guidance may have paused
        if self.max_consecutive is not None and since > self.max_consecutive:
            return Verdict(False, Reason.LONG_GAP)
        return None


class Gate(Protocol):
    """Decides one step of one branch; all memory lives in the branch's state."""

    needs_first_block: bool

    def skips_nothing(self, total: int | None) -> bool:
        """Whether its options ask for nothing to be skipped, in a loop of so many steps."""

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        """Decide before any block has run (asked where `needs_first_block` is False)."""

    def after_first_block(
        self, step: DenoisingStep, state: BranchState, before: torch.Tensor, after: torch.Tensor
    ) -> Verdict:
        """Decide from the first block's input and output `(B, L, C)`."""

    def gap_ended(self, state: BranchState, end: GapEnd, left: torch.Tensor) -> None:
        """See what the forecasts before a computed step were wrong by.

        Args:
            state: of the branch.
            end: of the gap.
            left: its error, as `left_in_latents`.
        """


@dataclass
class ScheduleGate:
    """Base of the gates that decide from the step alone."""

    needs_first_block: bool = field(default=False, init=False)

    def skips_nothing(self, total: int | None) -> bool:
        return False

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        raise TypeError(f"{type(self).__name__} decides nothing before the first block")

    def after_first_block(
        self, step: DenoisingStep, state: BranchState, before: torch.Tensor, after: torch.Tensor
    ) -> Verdict:
        raise TypeError(f"{type(self).__name__} decides before the first block")

    def gap_ended(self, state: BranchState, end: GapEnd, left: torch.Tensor) -> None:
        """A schedule learns nothing."""


@dataclass
class IntervalGate(ScheduleGate):
    """One computed step, then `interval - 1` forecasts."""

    interval: int

    def skips_nothing(self, total: int | None) -> bool:
        return self.interval == 1

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        if step.index - state.last_index >= self.interval:
            return Verdict(False, Reason.SCHEDULED, detail=f"every {self.interval} steps")
        return Verdict(True, Reason.BETWEEN)


@dataclass
class MaskGate(ScheduleGate):
    """An explicit list of computed steps."""

    steps: frozenset[int]
    total: int | None = None

    def skips_nothing(self, total: int | None) -> bool:
        return total is not None and self.steps.issuperset(range(total))

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        if self.total is not None and step.total is not None and step.total != self.total:
            raise ConfigError(
                f"the step mask was made for {self.total} steps, this run has {step.total}; "
                f"call the pipeline with num_inference_steps={self.total}"
            )
        if step.index in self.steps:
            return Verdict(False, Reason.IN_MASK)
        return Verdict(True, Reason.NOT_IN_MASK)


_NO_WIDTH = {
    Known.NO_SCHEDULER: "no scheduler is in sight: the transformer is called in a loop that has "
    "none among its variables",
    Known.NOT_SET: "the scheduler in sight is not in use (set_timesteps was not called)",
    Known.OTHER: "this loop runs at other timesteps than its scheduler's, or gives each frame its "
    "own",
    Known.FOLLOWED: "this scheduler has none, or takes its steps in stages (Heun)",
}
# Most that a gap may grow at once. ODE solvers often allow twice, which overshot on the samples
# where tolerances were large.
GROWTH = 1.5


@dataclass
class StepSizeGate(ScheduleGate):
    """Error control as in adaptive ODE solvers: the local error in the latents sets the gap.

    A computed step shows what the forecasts of the gap before it left in the latents. With
    forecasts of order m that error grows like gap^(m+2), which gives the gap that just meets the
    tolerance.
    """

    tolerance: float
    order: int
    max_interval: int
    safety: float = 0.9

    def skips_nothing(self, total: int | None) -> bool:
        return self.tolerance == 0.0 or self.max_interval == 1

    def check(self, step: DenoisingStep) -> None:
        """Raise ConfigError where a step has no width."""
        if step.sigma is None or step.sigma_next is None:
            raise ConfigError(
                f"adaptive_taylor weighs errors by sigmas, and {_NO_WIDTH[step.known]}; use "
                "confidence_gated_taylor or taylorseer"
            )

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        self.check(step)
        gap = state.scratch.get("gap", 1)
        error = state.scratch.get("error")
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
            # one lucky forecast is no trend
            longest = min(max(GROWTH * end.length, end.length + 1.0), float(self.max_interval))
            gap = int(min(max(ideal, 1.0), longest))
        state.scratch.update(gap=gap, error=error)


def left_in_latents(step: DenoisingStep, state: BranchState, end: GapEnd) -> torch.Tensor:
    """Error of a gap in the latents by their size: mean absolute values, worst sample, 0-d."""
    errors = split(end.error, state.shapes)
    relative = [_relative_size(e, s) for e, s in zip(errors, state.samples, strict=True)]
    # the worst sample decides, and of a video and its sound the worse one
    worst = torch.stack(relative).max() / step.latent_scale
    return worst if state.ranks is None else state.ranks.largest(worst)


def _relative_size(error: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """Size of an error in latents by the size of the latents, `(B,)`."""
    # Outputs may carry a learned variance, inputs conditions: what both have is the latents.
    # Channels are the second axis, or the last one of packed latents.
    common = tuple(slice(min(pair)) for pair in zip(error.shape, sample.shape, strict=True))
    size = sample[common].abs().flatten(1).mean(1, dtype=torch.float32)
    return error[common].abs().flatten(1).mean(1) / size


@dataclass
class FirstBlockGate:
    """Base of the gates that run the first block and compare what it gave.

    Args:
        threshold: relative L1 below which the rest of the step is forecast.
        worst_sample: compare the worst sample of the batch instead of the mean over the batch.
    """

    threshold: float
    worst_sample: bool = False
    needs_first_block: bool = field(default=True, init=False)

    def skips_nothing(self, total: int | None) -> bool:
        return self.threshold == 0.0

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        raise TypeError(f"{type(self).__name__} decides after the first block")

    def after_first_block(
        self, step: DenoisingStep, state: BranchState, before: torch.Tensor, after: torch.Tensor
    ) -> Verdict:
        return _below(self.error(step, state, before, after), self.threshold)

    def error(
        self, step: DenoisingStep, state: BranchState, before: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        """Relative L1 to compare, of each stream, or of each of its samples."""
        raise TypeError(f"{type(self).__name__} compares nothing")

    def gap_ended(self, state: BranchState, end: GapEnd, left: torch.Tensor) -> None:
        """The histories hold all that these gates need."""

    def compared(
        self, state: BranchState, expected: torch.Tensor, actual: torch.Tensor
    ) -> torch.Tensor:
        """Relative L1 of each stream: the loud one must not drown the other."""
        pairs = zip(*(split(x, state.hidden_shapes) for x in (expected, actual)), strict=True)
        errors = [relative_l1(e, a, self.worst_sample, state.ranks) for e, a in pairs]
        return torch.stack(errors)


class ForecastErrorGate(FirstBlockGate):
    """Confidence gate (arXiv 2508.02240): does the first block's forecast hit its actual output?"""

    def error(
        self, step: DenoisingStep, state: BranchState, before: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        if not len(state.first):
            # nothing was remembered during the warm-up: a forecast of 0, as in the authors' code
            return self.compared(state, torch.zeros_like(after), after)
        return self.compared(state, state.first.forecast(state.place(step)), after)


class FirstBlockResidualGate(FirstBlockGate):
    """FBCache's gate: how far did the first block's residual move since the last computed step?"""

    def error(
        self, step: DenoisingStep, state: BranchState, before: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        return self.compared(state, after - before, state.first.newest)


def _below(errors: torch.Tensor, threshold: float) -> Verdict:
    error = float(errors.max())
    if not math.isfinite(error):
        return Verdict(False, Reason.NON_FINITE, error)
    if error < threshold:
        return Verdict(True, Reason.BELOW_THRESHOLD, error)
    return Verdict(False, Reason.ABOVE_THRESHOLD, error)
