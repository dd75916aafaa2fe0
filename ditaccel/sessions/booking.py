"""What a session writes down of each transformer call, and what it warns of on the way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..caching.engine.correction import not_as_given, why_not
from ..caching.engine.hooks import BlockCache
from ..caching.engine.policy import CachePolicy, few_steps_line, too_few_steps
from ..core.denoising.leftover import Leftover
from ..core.denoising.loops import LONE_LINES, Loop
from ..core.denoising.tracker import DenoisingStep, Lone
from ..core.reasons import Reason, advice, deciding
from ..reports.data import CallRecord
from ..reports.journal import Journal
from ..reports.step_choice import StepChoice
from ..warning import warn

_FORECAST = "forecast"


class Booking:
    """Fills a session's journal.

    Args:
        journal: what to fill.
        method: name of the caching method, empty for none.
    """

    def __init__(self, journal: Journal, method: str) -> None:
        self.journal = journal
        self._method = method
        self._warned: set[str] = set()

    def warn(self, line: str, once: str = "") -> None:
        """Show a line, unless it, or one of the same kind, was shown.

        Args:
            line: the warning.
            once: its kind; the line itself by default.
        """
        if (once or line) in self._warned:
            return
        self._warned.add(once or line)
        self.journal.warnings.append(line)
        warn(line)

    def steps_chosen(self, choice: StepChoice) -> None:
        """Note how many steps a call runs; each choice is shown once."""
        self.journal.step_choice = choice
        line = f"steps: {choice}"
        if line not in self._warned:
            self._warned.add(line)
            warn(line)  # the report has it on a line of its own

    def begin_generation(self, loop: Loop) -> None:
        """Begin with nothing decided."""
        loop.reasons.clear()
        loop.left = Leftover()
        self.journal.left = None
        if self.journal.watched is not None:
            self.journal.watched.errors.clear()

    def begin_cache(self, step: DenoisingStep, policy: CachePolicy) -> None:
        """Note what caching can do in the generation that begins with this step."""
        gain = few_steps_line(policy, step.total)
        if gain:
            self.journal.note(gain)
        policy = policy.in_loop(step.total)
        if policy.correction == "auto":
            why = why_not(step)
            self.journal.correction = f"off: {why}" if why else "on"
        for line in (too_few_steps(self._method, policy, step.total), policy.gate.falls_back(step)):
            if line:
                self.warn(line)

    def lone(self, name: str, why: Lone, step: DenoisingStep | None = None) -> None:
        """Warn of a call that is of no denoising loop, and book it where its step is known."""
        self.warn(f"{name}: {LONE_LINES[why]}", once=f"{name}: {why.name}")
        if step is not None:
            self.journal.add(CallRecord.computed(name, step, why.value))

    def computed(self, name: str, step: DenoisingStep) -> None:
        """Book a call where no caching method is on."""
        self.journal.add(CallRecord.computed(name, step, Reason.NO_METHOD.value))

    def decided(
        self, name: str, step: DenoisingStep, call: Any, cache: BlockCache, loop: Loop
    ) -> None:
        """Book a call that a caching method decided over.

        Args:
            name: of the transformer.
            step: where the call is.
            call: what the cache made of it.
            cache: of the transformer.
            loop: that the call belongs to.
        """
        verdict = call.verdict
        if not_as_given(step):
            self.warn(not_as_given(step), once="sigmas")
        if verdict.error is not None and not math.isfinite(verdict.error):
            self.warn(
                f"{name} produced non-finite features at step {step.index} ({step.branch}): such "
                "steps are computed in full; check weights and dtype",
                once=f"{name}: {Reason.NON_FINITE}",
            )
        self._count(name, step, call, loop)
        if step.is_last:
            self._warn_of_no_hits(step, cache.policy, loop)
            self.journal.left = loop.left.value
        self.journal.add(
            CallRecord(
                generation=step.generation,
                step=step.index,
                branch=step.branch,
                transformer=name,
                timestep=step.timestep,
                sigma=step.sigma,
                action="forecast" if verdict.forecast else "compute",
                reason=verdict.text,
                cause=verdict.reason,
                error=verdict.error,
                blocks_run=call.blocks_run if cache.blocks else int(not verdict.forecast),
                blocks_total=len(cache.blocks) or 1,
                share=call.cost_run / cache.blocks.total_cost,
            )
        )

    def memory(self, caches: Iterable[BlockCache]) -> None:
        """Book the most bytes that the caches have held."""
        peaks: list[Mapping[str, int]] = [cache.memory.peak for cache in caches]
        self.journal.memory = {k: sum(p.get(k, 0) for p in peaks) for p in peaks for k in p}

    def _count(self, name: str, step: DenoisingStep, call: Any, loop: Loop) -> None:
        """Add a decision to those of its loop."""
        verdict, branch = call.verdict, (name, step.branch)
        if call.left is not None:
            error, began = call.left
            loop.left.gap_ended(branch, error, began, step.total)
            if self.journal.watched is not None:
                self.journal.watched.errors.setdefault(step.index, error)
        if verdict.forecast:
            loop.reasons[_FORECAST] += 1
            if not call.follows:
                loop.left.forecast(branch)
        elif not call.follows:  # else the first branch's reason is the true one
            loop.reasons[verdict.reason] += 1

    def _warn_of_no_hits(self, step: DenoisingStep, policy: CachePolicy, loop: Loop) -> None:
        """Warn if a whole generation ran without a forecast although the config allows some."""
        asked_for = policy.gate.skips_nothing(step.total)
        too_few = too_few_steps("", policy, step.total) is not None
        if loop.reasons[_FORECAST] or asked_for or too_few:
            return
        most = deciding({Reason(cause): n for cause, n in loop.reasons.items()})
        if most is Reason.NON_FINITE:
            return  # which was warned of, and no threshold helps
        self.warn(
            f"a whole generation was computed and nothing forecast (mostly: {most.value}); "
            f"{advice(most)}"
        )
