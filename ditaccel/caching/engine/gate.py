"""Compute or forecast? A gate decides for one branch of one step, and says why.

A gate declares as data what it needs to see (`Gate`), and the hooks show it that and nothing else.
A gate that only one method uses is in the file of that method.

A decision taken from data makes the CPU wait for the GPU. Per transformer call that is once for the
gates that compare the first blocks, never for the schedules, and once per computed step for a gate
that measures gaps; besides, the tracker reads the timestep once per call, `basis="auto"` four
errors per remembered feature, and a generation its schedule once and, at the end of each branch,
one flag and what its gaps left in the latents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...core.denoising.tracker import DenoisingStep
from ...core.outputs import split
from ...core.reasons import Reason
from .blocks import Block
from .forecast import relative_l1
from .gaps import GapEnd
from .state import BranchState, Verdict

COMPUTE_WARMUP = Verdict(False, Reason.WARM_UP)
COMPUTE_LAST = Verdict(False, Reason.LAST_STEPS)


@dataclass(frozen=True)
class StepRules:
    """What holds for all methods before the gate itself is asked.

    Attributes:
        warmup: first steps of a generation that are computed, at least.
        warmup_share: the same as a share of the loop's steps, where their number is known.
        final: last steps that are computed: of the loop, and of each transformer's part of it, so
            that no forecast is left unmeasured where another transformer takes over.
        max_consecutive: forecasts in a row at most, None for no limit.
        needed: computed steps that a forecast needs.
        exact: whether exactly the steps that the gate names are to be computed.
    """

    warmup: int = 1
    final: int = 0
    max_consecutive: int | None = None
    needed: int = 1
    warmup_share: float = 0.0
    exact: bool = False

    def first(self, total: int | None) -> int:
        """First steps that are computed in a loop of so many."""
        # rounded before it is rounded up: 0.35 * 20 is a little over 7
        share = 0 if total is None else math.ceil(round(self.warmup_share * total, 6))
        return max(self.warmup, share)

    def needed_later(self, order: int) -> int:
        """Computed steps that a forecast of this order needs in the part of a second transformer.

        There is no warm-up there, which gives the first part all that the order asks for.
        """
        return self.needed if self.exact else max(self.needed, order + 1)

    def verdict(self, step: DenoisingStep, state: BranchState) -> Verdict | None:
        """Return what the rules decide, or None to ask the gate."""
        if step.index < self.first(step.total):
            return COMPUTE_WARMUP
        if step.total is not None and step.index >= step.total - self.final:
            return COMPUTE_LAST
        if step.end is not None and step.index >= step.end - self.final:
            return Verdict(False, Reason.LAST_OF_EXPERT)
        if step.first and len(state.last) < self.needed_later(state.last.order):
            return Verdict(False, Reason.FIRST_OF_EXPERT)
        if len(state.last) < self.needed:
            # a branch that guidance switched on late
            return Verdict(False, Reason.NO_HISTORY)
        if step.stage and not self.exact:
            # a whole step is computed, or none of it
            return Verdict(state.last_index < step.index - 1, Reason.WITH_ITS_STEP)
        since = step.index - state.last_index  # not the branch's calls: guidance may have paused
        if self.max_consecutive is not None and since > self.max_consecutive:
            return Verdict(False, Reason.LONG_GAP)
        return None


class Gate:
    """Decides one step of one branch; what it remembers lies in the branch's state.

    What a gate needs it declares here; by default it needs nothing. Branches that follow the first
    one (`CachePolicy.guidance`) do not ask it.

    Attributes:
        first_blocks: blocks that run before it decides (`after_blocks`); 0: it decides `before`
            the first one.
        last_blocks: blocks that run behind what is forecast, on every step: the forecast is of what
            goes into the first of them, text included.
        by_place: whether the place in the loop alone decides: `before` reads nothing but the step's
            `index` and `total`, and `state.last_index`. Its steps are then known before a run
            (`policy.computed_steps`).
        needs_modulated: `state.modulated` is the modulated input of the first block, `(B, L, C)`,
            on every call: what its adaptive norm gives (`BlockContract.modulation`). `before` is
            then called right before the first block.
        needs_embedding: `state.embedding` is the embedding of the timestep, on every call: what
            `FamilyAdapter.embedding` gives. `before` is then called right before the first block.
        needs_samples: `state.samples` are the latents that the transformer is given, on every call:
            one tensor per stream, in the dtype and on the device in which they come. When a call
            has `finished`, `state.outputs` are the tensors that the transformer returned, if the
            step was computed. Both are gone after the call: keep a copy of what you need.
        needs_volume: `state.volume` are the latents of the first stream with their places in front
            of their channels, `(B, frames, rows, columns, C)` or fewer axes, on every call.
        needs_total: it needs the number of steps of the loop (`step.total`); a loop where that
            cannot be known is refused at its first call.
        made_for: steps of the loop that it was made for; None for any.
        needs_gaps: `gap_ended` tells what forecasts left in the latents.
        module_kinds: kinds of modules (`BlockContract.kind`) for which it decides separately, at
            module granularity: a verdict to forecast names those that rest (`Verdict.kinds`), and
            `state.computed_at` holds the step at which each was last computed. Modules of other
            kinds are computed.
        by_module: whether it decides for modules or kinds of them. One that decides for each module
            (`modules.gate.ModuleGate`) names those that rest in `Verdict.modules`.
    """

    first_blocks: int = 0
    last_blocks: int = 0
    by_place: bool = False
    needs_modulated: bool = False
    needs_embedding: bool = False
    needs_volume: bool = False
    needs_samples: bool = False
    needs_total: bool = False
    made_for: int | None = None
    needs_gaps: bool = False
    module_kinds: tuple[str, ...] = ()

    @property
    def by_module(self) -> bool:
        """See the attributes."""
        return bool(self.module_kinds)

    @property
    def looks_inside(self) -> bool:
        """Whether it sees something of the blocks before it decides."""
        return self.first_blocks > 0 or self.needs_modulated or self.needs_embedding

    def put_on(self, component: str, transformer: nn.Module, blocks: Sequence[Block]) -> None:
        """Look at the transformer that it is to decide for, before anything is patched.

        Args:
            component: name of the transformer in its pipeline.
            transformer: the transformer, unwrapped.
            blocks: of it; none where whole calls are all that is seen.

        Raises:
            ConfigError: it was made for another transformer.
            UnsupportedError: it needs what this transformer does not have.
        """

    def reuses(self, module: str, step: DenoisingStep | None = None) -> bool:
        """Whether what a module gives is forecast from, at module granularity.

        Args:
            module: path of the module in the transformer.
            step: at which it was computed; None: of any step.
        """
        return True

    def memory(self) -> Any:
        """What it remembers of a branch at its beginning (`state.memory`): an object of its own.

        Tensors that are attributes of it, or in lists there, are counted as memory of the cache.
        """
        return None

    def check(self, step: DenoisingStep) -> None:
        """Refuse a loop that it cannot work in, at its first call and not after a costly warm-up.

        Raises:
            ConfigError: one line that says why, and what to do.
        """

    def falls_back(self, step: DenoisingStep) -> str:
        """One line that says what it does instead where it cannot work as it should, else empty."""
        return ""

    def skips_nothing(self, total: int | None) -> bool:
        """Whether its options ask that nothing is skipped in a loop of `total` steps."""
        return False

    def order_at(self, step: DenoisingStep, follows: bool) -> int | None:
        """Order of the forecast of a step, at most the policy's; None for the policy's.

        Args:
            step: the call's place in the loop.
            follows: whether the call is of a branch that follows the first one.
        """
        return None

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        """Decide before any block has run (asked where `first_blocks` is 0)."""
        raise TypeError(f"{type(self).__name__} decides after the first blocks")

    def after_blocks(
        self, step: DenoisingStep, state: BranchState, before: torch.Tensor, after: torch.Tensor
    ) -> Verdict:
        """Decide from what went into the first block and came out of the last of `first_blocks`.

        Args:
            step: the call's place in the loop.
            state: of the branch.
            before: `(B, L, C)`; with a second stream of latents, both streams as one, `(B, N)`.
            after: the same.
        """
        raise TypeError(f"{type(self).__name__} decides before the first block")

    def gap_ended(self, state: BranchState, end: GapEnd, left: torch.Tensor) -> None:
        """See what the forecasts before a computed step were wrong by.

        Args:
            state: of the branch.
            end: of the gap.
            left: its error relative to the latents (`correction.left_in_latents`), 0-d.
        """

    def finished(self, step: DenoisingStep, state: BranchState, verdict: Verdict) -> None:
        """Called when a call ends, whoever decided it: `state.samples` are still there.

        Args:
            step: the call's place in the loop.
            state: of the branch.
            verdict: what was decided.
        """


@dataclass
class IntervalGate(Gate):
    """One computed step, then `interval - 1` forecasts."""

    interval: int

    by_place = True

    def skips_nothing(self, total: int | None) -> bool:
        return self.interval == 1

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        if step.index - state.last_index >= self.interval:
            return Verdict(False, Reason.SCHEDULED, detail=f"every {self.interval} steps")
        return Verdict(True, Reason.BETWEEN)


@dataclass
class FirstBlockGate(Gate):
    """Base of the gates that run the first blocks and compare what they gave.

    Args:
        threshold: relative L1 below which the rest of the step is forecast.
        worst_sample: compare the worst sample of the batch instead of the mean over the batch.
        first_blocks: blocks that run first, >= 1.
    """

    threshold: float
    worst_sample: bool = False
    first_blocks: int = 1

    def skips_nothing(self, total: int | None) -> bool:
        return self.threshold == 0.0

    def after_blocks(
        self, step: DenoisingStep, state: BranchState, before: torch.Tensor, after: torch.Tensor
    ) -> Verdict:
        return below(self.error(step, state, before, after), self.threshold)

    def error(
        self, step: DenoisingStep, state: BranchState, before: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        """Relative L1 to compare, of each stream, or of each of its samples.

        By default, how far the residual of the first blocks moved since the last computed step.
        """
        return self.compared(state, after - before, state.first.newest)

    def compared(
        self, state: BranchState, expected: torch.Tensor, actual: torch.Tensor
    ) -> torch.Tensor:
        """Relative L1 of each stream: the loud one must not drown the other."""
        pairs = zip(*(split(x, state.hidden_shapes) for x in (expected, actual)), strict=True)
        errors = [relative_l1(e, a, self.worst_sample, state.ranks) for e, a in pairs]
        return torch.stack(errors)


def below(errors: torch.Tensor | float, threshold: float) -> Verdict:
    """The verdict of a gate that compares errors with a threshold: the largest one decides."""
    error = float(errors.max()) if isinstance(errors, torch.Tensor) else errors
    if not math.isfinite(error):
        return Verdict(False, Reason.NON_FINITE, error)
    if error < threshold:
        return Verdict(True, Reason.BELOW_THRESHOLD, error)
    return Verdict(False, Reason.ABOVE_THRESHOLD, error)


def resampled(steps: Iterable[int], total: int, new: int) -> frozenset[int]:
    """Computed steps of a loop of another length, at the noise levels where they were.

    A pipeline spaces loops of any length by one rule, so that equal shares of two loops are at
    (about) equal noise levels; each computed step becomes the one of the nearest level, and the
    last one stays the last. Steps that fall together are computed once.

    Args:
        steps: indices of the computed steps.
        total: steps of the loop that they were made for.
        new: steps of the other loop.
    """
    return frozenset(
        new - 1 if step == total - 1 else min(new - 1, round(step * new / total)) for step in steps
    )
