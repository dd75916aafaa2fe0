"""tune: record dense runs, search the computed steps, and compare the result with a target."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

import numpy as np
import torch
from torch import nn

from ..api import accelerated
from ..caching.engine.options import MemoryBudget
from ..config import AccelerationConfig, choice
from ..core._compat import refuse_split
from ..core.kinds import decoded, pictures_of, set_by_us
from ..core.transformers import transformers_of
from ..errors import ConfigError, UsageError
from ..io import given
from ..io.asking import check_call
from ..io.progress import Progress, duration
from ..pipelines import FamilyAdapter
from ..sessions.session import session_of
from ..warning import warn
from .joint.recording import clock
from .masks import Mask, Moves
from .plan_search import best_within, cheapest_good
from .promise import HeldOut, Outcome, Promise, Tested, first_that_holds, spread
from .quality import STATISTICS, as_bytes, doubt_of, level_of, psnrs, surely
from .recording import Recording, record
from .refine import Goal, Refine, Refinement
from .schedule_search import Plan, plans
from .space.stamp import stamped
from .space.store import RunStore, config_name, name_of
from .target import Target, TuningRun
from .trajectories import response_of, trajectories_of
from .trials import Journal, Trial, Trials, search_name

# What computing only the first step must gain over computing the first three, in dB: the early
# steps decide what is drawn, and that it was drawn alike on a few prompts is no promise for others.
_WARMUPS = (3, 1)
_MARGIN = 1.0
# Prompt-seed pairs where fewer prompts are given.
PAIRS = 8
NOT_REFINED = Refine(trials=0)
# What is added to the seeds for noise that nothing was learnt from.
_FRESH = 100_000
# Seconds of a run from which on it is said what follows.
_LONG = 20.0


def paired(calls: Sequence[dict[str, Any]], pairs: int | None) -> list[dict[str, Any]]:
    """Calls of so many prompt-seed pairs: the prompts in turn, each time with another seed.

    Args:
        calls: one per prompt.
        pairs: how many; None for 8, or one per prompt if there are more prompts.
    """
    count = max(len(calls), PAIRS) if pairs is None else pairs
    return [calls[i % len(calls)] for i in range(count)] if calls else []


def _outlook(seconds: float, calls: int) -> str:
    """What is going to be run, where a run takes long."""
    return (
        f"a dense run takes {duration(seconds)}: {calls} of them, then 4 plans for each share and "
        f"some 10 to 20 for each PSNR, each run {calls} times and faster by what it skips"
    )


def tunable(
    pipe: Any, calls: Sequence[Mapping[str, Any]], adapter: FamilyAdapter | None
) -> tuple[dict[str, nn.Module], FamilyAdapter]:
    """The transformers of a pipeline that `tune` can work on, and their family.

    Raises:
        UsageError: an accelerated pipeline, or unusable calls.
        UnsupportedError: no transformer, one that is split over devices, or a pipeline that makes
            no pictures.
    """
    if not calls:
        raise UsageError("tune needs at least one call to learn from")
    decoded(pipe)
    for call in calls:
        named = sorted(set_by_us(pipe) & set(call))
        if named:
            raise UsageError(f"tune sets {named[0]} itself; leave it out of the call")
        check_call(pipe, call, "tune")
    transformers, family = transformers_of(pipe, adapter)
    for name, transformer in transformers.items():
        refuse_split(name, transformer, "tune")
    if session_of(transformers) is not None:
        raise UsageError("tune needs the dense pipeline; call ditaccel.restore(pipe) first")
    return transformers, family


@dataclass(frozen=True)
class Promised:
    """What came of a promise.

    Attributes:
        run: the config, with its levels on held-out prompts; the safest of those that were tested
            where none can be promised.
        held: whether it can be promised.
        words: that in a line.
    """

    run: TuningRun
    held: bool
    words: str


class Tuner:
    """Records a pipeline once; then makes and checks configs.

    One generation's outputs are held at a time, and after it only their products: `(S, S)` numbers
    per sample for S steps, and the dense frames as bytes.

    Args:
        pipe: an unaccelerated pipeline.
        calls: arguments of the pipeline call, one mapping per generation, e.g. `{"prompt": …}`.
        seed: the noise of generation i is drawn with `seed + i`.
        progress: called with one line per generation.
        memory_budget: bytes, or text such as `2GB`, for the outputs of one generation; what exceeds
            it is spooled to a temporary file.
        refine: how far the best plans are refined.
        adapter: of the transformers; by default that of their family.
        bar: show how far refining is on the terminal, in place of lines to `progress`.

    Raises:
        ConfigError: too few steps to skip any, or an unreadable budget.
        UnsupportedError: a scheduler that draws noise or clips.
        UsageError: an accelerated pipeline, unusable calls, broken output, no room to spool, or a
            file of another search.
    """

    def __init__(
        self,
        pipe: Any,
        calls: Sequence[Mapping[str, Any]],
        seed: int = 0,
        progress: Callable[[str], None] = lambda line: None,
        memory_budget: int | str = "4GB",
        refine: Refine = NOT_REFINED,
        adapter: FamilyAdapter | None = None,
        bar: bool = False,
    ) -> None:
        self._refine, self._began, self._bar = refine, time.monotonic(), bar
        transformers, family = tunable(pipe, calls, adapter)
        budget = MemoryBudget.parse(memory_budget)
        assert budget is not None
        self._pipe, self._calls, self._seed, self._progress = pipe, list(calls), seed, progress
        self._adapter, self._parts = adapter, transformers
        journal = None
        if refine.resume is not None:  # before anything runs
            path = given.output_file(refine.resume, "resume")
            journal = Journal(path, search_name(pipe, self._calls, seed))
        recordings: list[Recording] = []
        self._dense: list[np.ndarray] = []
        for i in range(len(self._calls)):
            progress(f"dense run {i + 1} of {len(self._calls)}")
            run, start = partial(self._generate, self._calls[i], seed + i), time.monotonic()
            frames, recording = record(pipe, transformers, family, run, budget)
            if i == 0:  # before all others are run
                response_of(recording.steps, len(recording.guided[0]))
            if i == 0 and time.monotonic() - start > _LONG:
                progress(_outlook(time.monotonic() - start, len(self._calls)))
            self._dense.append(frames)
            recordings.append(recording)
        self.total = len(recordings[0].steps)
        if len({len(r.steps) for r in recordings}) > 1:
            raise UsageError("all calls must have the same number of steps")
        self._first, difference = trajectories_of(recordings)
        progress("searching")
        fronts = [plans(self._first, difference, warmup) for warmup in _WARMUPS]
        self.plans = [front for front in fronts if front]
        if not self.plans:
            raise ConfigError(f"{self.total} steps leave nothing to skip; use more steps")
        self._calls_of_dense = self.total * (1 if difference is None else 2)
        self._known: dict[Mask, Trial] = {}
        self._trials = partial(
            Trials, self._levels, sum(map(len, self._dense)), known=self._known, journal=journal
        )
        self._checks = self._trials("mean")
        self._held: HeldOut | None = None
        # Beside the file of the trials, where there is one: they are not made again after a kill.
        kept = None if refine.resume is None else f"{refine.resume}.runs"
        self._store = RunStore(kept)
        # The same generations with noise that nothing was learnt from, made dense once for all
        # targets.
        self._fresh = self._held_out(self._calls, seed + _FRESH)

    def _generate(self, call: Mapping[str, Any], seed: int) -> np.ndarray:
        # drawn on the CPU on every device: the noise must not depend on the machine
        generator = torch.Generator("cpu").manual_seed(seed)
        arguments = {**call, **decoded(self._pipe), "generator": generator}
        return as_bytes(pictures_of(self._pipe, self._pipe(**arguments)))

    def _levels(self, mask: Mask) -> Iterator[list[float]]:
        """Run a mask on one call after the other."""
        with accelerated(self._pipe, mask.config(self.total), adapter=self._adapter):
            for i, dense in enumerate(self._dense):
                yield psnrs(self._generate(self._calls[i], self._seed + i), dense)

    def check(self, plan: Plan) -> TuningRun:
        """Run a plan on all calls; returns what it gave."""
        new = plan.mask not in self._known
        run = self._as_run(self._checks.tried(plan.mask))
        if new:
            self._progress(run.line)
        return run

    def stamped(self, run: TuningRun) -> AccelerationConfig:
        """The config of a run with what it was tuned on, which a few generations show."""

        def made(call: Mapping[str, Any], i: int) -> None:
            self._generate(call, self._seed + i)

        figures = {"psnr": run.levels, "computed_share": [run.computed_share]}
        return stamped(self._pipe, run.config, self._calls, figures, made, self._adapter)

    def _as_run(self, trial: Trial) -> TuningRun:
        mask = trial.mask
        share = mask.calls / self._calls_of_dense
        return TuningRun(mask.config(self.total), share, trial.levels, mask)

    @property
    def runs(self) -> list[TuningRun]:
        """All that were run on all calls, for whatever target."""
        return [self._as_run(trial) for trial in self._known.values() if trial.complete]

    def at_share(self, share: float, statistic: str = "mean") -> TuningRun:
        """Return the best checked plan that computes no more than `share` of the calls.

        Of two within 1 dB the one with the longer warm-up is taken, and that is reported.

        Args:
            share: between 0 and 1.
            statistic: which of the samples' PSNR decides: `mean`, `p10` or `min`.

        Raises:
            ConfigError: no plan computes so little.
        """
        choice("statistic", statistic, STATISTICS)
        if not any(best_within(self.plans, share, self.check)):
            least = min(p.share for front in self.plans for p in front)
            raise ConfigError(f"computed_share {share:g} is out of reach; at least {least:.3f}")
        within = [run for run in self.runs if run.computed_share <= share + 1e-9]

        def level(run: TuningRun) -> float:
            return run.level(statistic)

        best = max(within, key=level)
        safe = {plan.mask for plan in self.plans[0]}
        safer = max((run for run in within if run.mask in safe), key=level, default=best)
        if best.mask == safer.mask or level(best) >= level(safer) + _MARGIN:
            return best
        if level(best) > level(safer):
            self._progress(
                f"{safer.config.label} is taken for its longer warm-up: the best, "
                f"{best.config.label}, has only {level(best) - level(safer):.1f} dB more"
            )
        return safer

    def at_psnr(self, psnr: float, statistic: str = "mean") -> TuningRun:
        """Return the checked plan with the least computation that reaches `psnr`.

        Every plan that this tuner has run counts, whatever it was run for. Where none reaches it,
        the run with the highest level is returned, with a warning (`TuningRun.reaches`).

        Args:
            psnr: in dB.
            statistic: which of the samples' PSNR has to reach it: the `mean` less its standard
                error, `p10` or `min`.
        """
        best = self._nearest(psnr, statistic)
        self._warn_of_missed(Target(psnr=psnr, statistic=statistic), best)
        return best

    def _nearest(self, psnr: float, statistic: str) -> TuningRun:
        target = Target(psnr=psnr, statistic=statistic)
        found = cheapest_good(
            self.plans, self.check, lambda: self.runs, lambda run: run.reaches(target)
        )
        return found or max(self.runs, key=lambda run: surely(run.levels, statistic))

    @staticmethod
    def _warn_of_missed(target: Target, best: TuningRun) -> None:
        if not best.reaches(target):
            warn(
                f"no plan that was run reaches {target.asked}; the best has "
                f"{best.shown(target.statistic)}, with {100 * best.computed_share:.0f} % of the "
                "calls computed"
            )

    def reach(self, target: Target) -> TuningRun:
        """Return the checked plan that serves a target of steps best, refined."""
        if target.psnr is not None:
            best = self._nearest(target.psnr, target.statistic)
        else:
            assert target.computed_share is not None
            best = self.at_share(target.computed_share, target.statistic)
        if self._refine.trials:
            best = self._refined(best, target)
        if target.psnr is not None:
            self._warn_of_missed(target, best)
        return best

    def promised(self, promise: Promise, calls: Sequence[Mapping[str, Any]]) -> Promised:
        """Return the least costly config that can be promised.

        Args:
            promise: what is promised.
            calls: arguments of the pipeline call, one mapping per held-out prompt; the same ones
                for every promise of a tuner.

        Raises:
            UsageError: too few prompts for any promise, or a full disk.
        """
        promise.check_count(len(calls), len(self._calls))
        if self._held is None:
            self._progress(f"{len(calls)} dense runs of held-out prompts")
            self._held = self._held_out(calls, self._seed + len(self._calls))
            self._held.make_dense()
        masks = self._to_look_at(promise)

        def told(mask: Mask, tested: Tested) -> None:
            self._progress(
                f"{mask.config(self.total).label}: {tested.missed} of {len(tested.levels)} "
                f"held-out prompts miss {promise.psnr:g} dB"
            )

        levels = partial(self._levels_on, self._held)
        tests = first_that_holds(promise, masks, levels, len(self._held), told)
        run = self._as_run(Trial(masks[len(tests) - 1], tests[-1].levels))
        label = run.config.label
        came = Outcome.of(promise, tests, len(masks), len(self._held), label)
        if came.held:
            run = replace(run, config=replace(run.config, label=f"{label}, {promise}"))
        return Promised(run, came.held, came.words)

    def _to_look_at(self, promise: Promise) -> list[Mask]:
        """Masks to test for a promise, by what was learnt: they cost more and more."""

        def good(run: TuningRun) -> bool:
            reached = sum(level >= promise.psnr for level in run.levels)
            return reached >= promise.share * len(run.levels)

        best = cheapest_good(self.plans, self.check, lambda: self.runs, good)
        best = best or max(self.runs, key=lambda run: run.psnr_min)
        if self._refine.trials:
            best = self._refined(best, Target(psnr=promise.psnr, statistic="min"))
        plans = self.plans[0]
        shares = [*(plan.share for plan in plans), best.computed_share]
        masks = [*(plan.mask for plan in plans), best.mask]
        return [masks[i] for i in spread(shares, best.computed_share)]

    def _levels_on(self, held: HeldOut, mask: Mask) -> Generator[float]:
        """What a mask gives on generations that nothing was learnt from."""
        config = mask.config(self.total)
        on = partial(accelerated, self._pipe, config, adapter=self._adapter)
        return held.levels(on, config_name(config))

    def _held_out(self, calls: Sequence[Mapping[str, Any]], seed: int) -> HeldOut:
        def named(call: Mapping[str, Any], seed: int) -> str:
            return name_of(search_name(self._pipe, [call], seed))

        device = next(next(iter(self._parts.values())).parameters()).device
        timed = partial(clock, device)
        return HeldOut(self._generate, calls, seed, self._store, named, timed)

    def _refined(self, start: TuningRun, target: Target) -> TuningRun:
        """Try masks around the best plan."""
        count, minutes = self._refine.trials, self._refine.minutes
        if target.psnr is not None:
            goal = Goal(psnr=target.psnr)
        else:
            assert target.computed_share is not None
            goal = Goal(calls=int(target.computed_share * self._calls_of_dense + 1e-9))
        warmup = next(w for w in _WARMUPS if set(range(w)) <= set(start.mask.steps))
        say = None if self._bar else self._progress
        bar = Progress(count, name="tune", unit="plans", say=say)
        search = Refinement(
            self._trials(target.statistic, surely if target.psnr is not None else level_of),
            Moves(self.total, self._first.forced(warmup)),
            goal,
            Random(self._seed),
            told=lambda level, calls: bar.step(f"{level:.1f} dB with {calls} calls"),
            over=lambda: minutes is not None and time.monotonic() > self._began + 60 * minutes,
        )
        try:
            way = search.anneal if self._refine.anneal else search.climb
            best = self._as_run(way(start.mask, count))
        finally:
            bar.close()
        return start if best.mask == start.mask else self._borne_out(best, start, target)

    def _borne_out(self, best: TuningRun, start: TuningRun, target: Target) -> TuningRun:
        """The refined plan with what fresh noise gives of it, or the start where that is better.

        The winner of many trials on few pairs owes a part of its gain to these pairs.
        """
        self._fresh.make_dense()
        ours, before = (self._on_fresh(run.mask) for run in (best, start))
        needed = before.level(target.statistic)
        if target.psnr is not None and best.mask.calls < start.mask.calls:
            needed = min(needed, target.psnr)
        gains = np.subtract(ours.levels, before.levels)
        kept = ours.level(target.statistic) >= needed
        self._progress(
            f"refined by {best.level(target.statistic) - start.level(target.statistic):+.1f} dB "
            f"and {best.mask.calls - start.mask.calls:+d} calls; with fresh noise "
            f"{gains.mean():+.1f} +- {doubt_of(list(gains), 'mean'):.1f} dB, so "
            + (f"it is taken: {ours.line}" if kept else f"the first plan stays: {start.line}")
        )
        return ours if kept else start

    def _on_fresh(self, mask: Mask) -> TuningRun:
        return self._as_run(Trial(mask, tuple(self._levels_on(self._fresh, mask))))
