"""SpaceTuner: learns once from dense runs, then races candidates against targets."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ...api import accelerated
from ...api import report as report_of
from ...caching.engine.options import MemoryBudget
from ...config import AccelerationConfig
from ...core.denoising.schedulers import described
from ...core.kinds import decoded, pictures_of
from ...errors import UsageError
from ...io.files import write_json
from ...io.progress import duration
from ...io.provenance import device_of
from ...pipelines import FamilyAdapter
from ..joint.recording import clock, record_modes
from ..masks import Mask
from ..promise import HeldOut, Outcome, Promise, first_that_holds, spread
from ..quality import PSNR, Measure, as_bytes
from ..target import Target
from ..trajectories import Loop
from ..trials import search_name
from ..tuner import tunable
from .candidates import fewer, fronts_of
from .race import Aim, Candidate, Race, Standing
from .records import Learnt, Recorded
from .space import Space
from .stamp import stamped
from .store import Result, RunStore, config_name, name_of
from .tried import PAGE, Found, as_page, picture_name, small

# Runs that are recorded with every mode, and prompts that every candidate is run on first.
_RECORDED, _FIRST = 2, 1


@dataclass(frozen=True)
class SpacePromised:
    """What came of a promise.

    Attributes:
        config: that was tested last: the one that can be promised, if one can.
        levels: of held-out prompts in dB.
        held: whether it can be promised.
        words: that in a line.
    """

    config: AccelerationConfig
    levels: tuple[float, ...]
    held: bool
    words: str


def generated(pipe: Any, call: Mapping[str, Any], seed: int) -> np.ndarray:
    """Decoded output of a call as bytes, `(B, …)`."""
    # drawn on the CPU on every device: the noise must not depend on the machine
    generator = torch.Generator("cpu").manual_seed(seed)
    return as_bytes(pictures_of(pipe, pipe(**{**call, **decoded(pipe), "generator": generator})))


class SpaceTuner:
    """Searches a space on one pipeline.

    Args:
        pipe: an unaccelerated pipeline.
        calls: arguments of the pipeline call, one mapping per generation.
        space: what may vary.
        seed: the noise of generation i is drawn with `seed + i`.
        progress: called with one line per piece of work, with the time left.
        memory_budget: bytes, or text such as `2GB`, for the outputs of one generation.
        adapter: of the transformers; by default that of their family.

    Raises:
        ConfigError: a space that does not fit, or an unreadable budget.
        UnsupportedError: a scheduler that draws noise or clips.
        UsageError: an accelerated pipeline, unusable calls, or a folder that cannot be used.
    """

    def __init__(
        self,
        pipe: Any,
        calls: Sequence[Mapping[str, Any]],
        space: Space,
        seed: int = 0,
        progress: Callable[[str], None] = lambda line: None,
        memory_budget: int | str = "4GB",
        adapter: FamilyAdapter | None = None,
    ) -> None:
        minutes = space.minutes
        self._ends = None if minutes is None else time.monotonic() + 60 * minutes
        transformers, family = tunable(pipe, calls, adapter)
        self._device = next(next(iter(transformers.values())).parameters()).device
        self._pipe, self._calls, self._space, self._seed = pipe, list(calls), space, seed
        self._progress, self._adapter = progress, adapter
        self._budget = MemoryBudget.parse(memory_budget) or 0
        self._maps, settings = space.maps(family), space.settings(family)
        for config in settings:  # what cannot be put on is refused before hours of dense runs
            with accelerated(pipe, config, adapter=adapter):
                pass
        self.store = RunStore(space.runs)
        self._runs = [self._run_name(call, seed + i) for i, call in enumerate(self._calls)]
        self._metrics: dict[str, Measure] = {PSNR.stored: PSNR}
        self._targets: dict[str, Any] = {}
        self._shown: list[Any] = []
        self._wall: list[float] = []
        self._to_run = 0
        recorded = [self._recorded(i, None) for i in range(min(_RECORDED, len(calls)))]
        self.total = recorded[0].steps
        if len({run.steps for run in recorded}) > 1:
            raise UsageError("all calls must have the same number of steps")
        counts = space.counts(self.total)
        self._dense = [run.frames for run in recorded]
        self._dense += [self._made_dense(i) for i in range(len(recorded), len(calls))]
        self.learnt = Learnt.of(recorded)
        self.fronts, self.others = self._candidates(counts)
        self.others += [Candidate(config, "given") for config in settings]

    # -- dense runs --

    def _run_name(self, call: Mapping[str, Any], seed: int) -> str:
        # (seconds of another device, or of other threads, must not be compared with ours)
        return name_of(search_name(self._pipe, [call], seed), device_of(self._pipe))

    def _generate(self, i: int, steps: int | None = None) -> np.ndarray:
        more = {} if steps is None else {"num_inference_steps": steps}
        return generated(self._pipe, {**self._calls[i], **more}, self._seed + i)

    def _recorded(self, i: int, steps: int | None) -> Recorded:
        modes = [mode for map in self._maps for mode in map.modes]
        name = name_of(
            self._runs[i],
            steps,
            [config_name(AccelerationConfig(attention=mode)) for mode in modes],
        )

        def make() -> dict[str, np.ndarray]:
            of = "" if steps is None else f" of {steps} steps"
            beside = f", and {len(modes)} sparse modes next to each call" if modes else ""
            self._progress(f"dense run {i + 1}{of}{beside}")
            run = partial(self._generate, i, steps)
            frames, recording, errors = record_modes(
                self._pipe, self._adapter, run, self._budget, modes
            )
            return Recorded(frames, Loop.of(recording), recording, errors).arrays()

        return Recorded.of(self.store.arrays(f"recorded-{name}", make))

    def _made_dense(self, i: int) -> np.ndarray:
        def make() -> dict[str, np.ndarray]:
            self._progress(f"dense run {i + 1} of {len(self._calls)}")
            return {"frames": self._generate(i)}

        return self.store.arrays(f"dense-{self._runs[i]}", make)["frames"]

    # -- candidates --

    def _candidates(self, counts: Sequence[int]) -> tuple[list[list[Candidate]], list[Candidate]]:
        forecast = self._seconds_of_a_forecast() if self._space.schedules else 0.0
        fronts, others = [], []
        for steps in (None, *counts):
            learnt = self.learnt
            if steps is not None:
                learnt = Learnt.of([self._recorded(0, steps)])
                others.append(fewer(steps, learnt.dense))
            fronts += fronts_of(learnt, self._maps, self._space.schedules, forecast, steps)
        return [front for front in fronts if front], others

    def _seconds_of_a_forecast(self) -> float:
        """Of a call, measured on a loop that computes hardly anything."""
        forced = sorted(self.learnt.first.forced(1))
        others = None if self.learnt.difference is None else tuple(forced)
        config = Mask(tuple(forced), others).config(self.total)
        result = self._result(0, Candidate(config, "probe"))
        calls = 1 if self.learnt.difference is None else 2
        computed = calls * len(forced) * self.learnt.seconds[0]
        forecasts = calls * (self.total - len(forced))
        spent = max(result.seconds - self.learnt.outside - computed, 0.0) / max(forecasts, 1)
        # One run is noisy where calls take a millisecond.
        return min(spent, 0.5 * self.learnt.seconds[0])

    # -- runs --

    def _result(self, i: int, candidate: Candidate) -> Result:
        config = config_name(candidate.config)
        known = self.store.result(self._runs[i], config, set(self._metrics))
        if known is not None:
            return known
        start = time.monotonic()
        with accelerated(self._pipe, candidate.config, adapter=self._adapter):
            began = clock(self._device)
            frames = self._generate(i)
            seconds = clock(self._device) - began
            memory = report_of(self._pipe).cache_bytes
        self._wall.append(time.monotonic() - start)
        levels = {
            key: [
                measure.run(dense, ours) for dense, ours in zip(self._dense[i], frames, strict=True)
            ]
            for key, measure in self._metrics.items()
        }
        if i == 0:
            self.store.arrays(picture_name(config), lambda: {"frames": small(frames[0])})
        result = Result({**levels, "memory": [float(memory)]}, seconds)
        self.store.add(self._runs[i], config, result)
        return result

    def _standing(self, measure: Measure, candidate: Candidate, prompts: int) -> Standing:
        results = [self._result(i, candidate) for i in range(prompts)]
        levels = tuple(level for r in results for level in r.levels[measure.stored])
        seconds = float(np.median([r.seconds for r in results]))
        memory = max(r.levels["memory"][0] for r in results)
        made = Standing(candidate, levels, seconds, prompts, memory)
        if (candidate.config, prompts) in self._shown:
            return made
        self._shown.append((candidate.config, prompts))
        self._progress(
            f"{candidate.config.name}: {measure.shown(measure.level(levels, 'mean'))}, "
            f"{self.learnt.dense / seconds:.2f}x on {prompts} of {len(self._calls)}{self._left()}"
        )
        return made

    def _left(self) -> str:
        """The time left in words: what is still to be run, by what runs took, or the limit."""
        if not self._wall:
            return ""
        runs = max(self._to_run - len(self._wall), 1)
        seconds = runs * sum(self._wall) / len(self._wall)
        if self._ends is not None:
            seconds = min(seconds, max(self._ends - time.monotonic(), 0.0))
        return f"; about {duration(seconds)} left"

    def _planned(self) -> int:
        """Runs that a race takes, about: a bisection per front, and twice as many to decide."""
        fronts = sum(len(front).bit_length() + 3 for front in self.fronts)
        return len(self._wall) + len(self.others) + fronts + 2 * len(self._calls)

    def reach(self, target: Target) -> Found:
        """Return the config that serves a target best, of all that the space allows.

        Args:
            target: with `psnr` or `level` the fastest that reaches it, with `speedup` or `seconds`
                the best that does.

        Raises:
            ConfigError: a target that a space does not serve, or an unknown metric.
        """
        aim = Aim.of(target, self.learnt.dense)
        self._metrics[aim.measure.stored] = aim.measure
        self._to_run = self._planned()
        over = lambda: self._ends is not None and time.monotonic() > self._ends  # noqa: E731
        race = Race(aim, partial(self._standing, aim.measure), len(self._calls), over)
        entered = [each for front in self.fronts for each in race.entered(front, _FIRST)]
        best = race.won([*self.others, *entered], _FIRST)
        if best is None:
            raise UsageError("this space has no candidate: nothing in it saves time here")
        if aim.level is not None and not aim.reached(best):
            best = race.safer(best, self.fronts)
        reached = aim.reached(best)
        shown = aim.measure.shown(aim.measure.level(best.levels, aim.statistic))
        words = "" if reached else f"no config that was run reaches {target.asked}; the best is "
        words += (
            f"{best.candidate.config.name}: {shown}, {self.learnt.dense / best.seconds:.2f}x "
            f"({best.seconds:.3g} s of {self.learnt.dense:.3g} s)"
        )
        if best.runs < len(self._calls):
            words += f"; the time was up, so it was run on {best.runs} of {len(self._calls)} alone"
        standings = tuple(race.standings.values())
        found = Found(best, reached, aim, standings, self.learnt.dense, words, len(self._calls))
        self._write(target, found)
        return found

    def promised(self, promise: Promise, calls: Sequence[Mapping[str, Any]]) -> SpacePromised:
        """Return the fastest config that can be promised (`tuning.promise`).

        Args:
            promise: what is promised.
            calls: arguments of the pipeline call, one mapping per held-out prompt.

        Raises:
            UsageError: too few prompts for any promise, or a full disk.
        """
        promise.check_count(len(calls), len(self._calls))
        found = self.reach(Target(psnr=promise.psnr, statistic="p10"))
        best = found.best.candidate
        known = [each for front in self.fronts for each in front if each.seconds is not None]
        candidates = [*(each for each in known if each is not best), best]
        seconds = [each.seconds or 0.0 for each in candidates[:-1]] + [found.best.seconds]
        chosen = [candidates[i] for i in spread(seconds, found.best.seconds)]
        held = HeldOut(
            lambda call, seed: generated(self._pipe, call, seed),
            calls,
            self._seed + len(self._calls),
            self.store,
            self._run_name,
            partial(clock, self._device),
        )
        self._progress(f"{len(calls)} dense runs of held-out prompts")
        held.make_dense()

        def levels(candidate: Candidate) -> Generator[float]:
            on = partial(accelerated, self._pipe, candidate.config, adapter=self._adapter)
            return held.levels(on, config_name(candidate.config))

        tests = first_that_holds(promise, chosen, levels, len(held))
        taken, label = chosen[len(tests) - 1], chosen[len(tests) - 1].config.name
        came = Outcome.of(promise, tests, len(chosen), len(held), label)
        figures = {"psnr": tests[-1].levels}
        config = self._stamped(taken.config, figures)
        if came.held:
            config = replace(config, label=f"{label}, {promise}")
        return SpacePromised(config, tests[-1].levels, came.held, came.words)

    def stamped(self, found: Found) -> AccelerationConfig:
        """The config that was found with what it was tuned on, which a few generations show."""
        best = found.best
        figures = {
            found.aim.measure.key: best.levels,
            "seconds": [best.seconds],
            "speedup": [found.speedup],
        }
        return self._stamped(best.candidate.config, figures)

    def _stamped(
        self, config: AccelerationConfig, figures: Mapping[str, Sequence[float]]
    ) -> AccelerationConfig:
        def made(call: Mapping[str, Any], i: int) -> None:
            self._generate(i)

        return stamped(self._pipe, config, self._calls, figures, made, self._adapter)

    def _write(self, target: Target, found: Found) -> None:
        """Write what was tried for `ditaccel report`, one part per target."""
        self.store.arrays("picture-dense", lambda: {"frames": small(self._dense[0][0])})
        self._targets[target.asked] = as_page(found)
        data = {
            "tuning": 1,
            "model": type(self._pipe).__name__,
            "scheduler": described(self._pipe.scheduler),
            "steps": self.total,
            "prompt": str(self._calls[0].get("prompt") or ""),
            "prompts": len(self._calls),
            "targets": self._targets,
        }
        write_json(self.store.folder / PAGE, data)
