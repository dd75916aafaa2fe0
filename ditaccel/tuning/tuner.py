"""tune: record dense runs, search the computed steps, and hold the result against a target."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from ..api import accelerated
from ..api import report as report_of
from ..caching.engine.options import MemoryBudget
from ..caching.step_mask import StepMaskConfig
from ..config import AccelerationConfig, choice
from ..config.option_types import checked, checked_value
from ..core._compat import refuse_split
from ..core.transformers import transformers_of
from ..errors import ConfigError, UnsupportedError, UsageError
from ..io.asking import check_call
from ..io.progress import duration
from ..io.prompts import Prompt, as_calls, listed
from ..sessions.session import session_of
from ..warning import warn
from .calibration import Calibration, calibrate
from .plan_search import best_within, cheapest_good
from .recording import Recording, record
from .schedule_search import Plan, Trajectory, plans

STATISTICS = ("mean", "min")
MOST_PSNR = 99.0
# What computing only the first step must gain over computing the first three, in dB: the early
# steps decide what is drawn, and that it was drawn alike on a few prompts is no promise for others.
_WARMUPS = (3, 1)
_MARGIN = 1.0
# Seconds of a run from which on it is said what follows.
_LONG = 20.0


@checked()
@dataclass(frozen=True, kw_only=True)
class Target:
    """What a tuned config must reach; give one of the three.

    Attributes:
        psnr: PSNR to the dense output in dB, on the prompts given; the fastest config found that
            reaches it is taken.
        computed_share: share of the transformer calls that may be computed, between 0 and 1; the
            best config found that keeps to it is taken.
        attention_error: relative L1 error of every attention layer's output against the dense one;
            LiteAttention's thresholds per layer and part of the loop are chosen to keep to it, and
            no step is forecast.
        statistic: `mean` over the samples, or `min`: the worst sample must reach `psnr`, or decides
            which config is best. A few samples say little about the worst of many: leave a margin.
    """

    psnr: float | None = None
    computed_share: float | None = None
    statistic: str = "mean"
    attention_error: float | None = None

    def __post_init__(self) -> None:
        choice("statistic", self.statistic, STATISTICS)
        given = (self.psnr, self.computed_share, self.attention_error)
        if sum(value is not None for value in given) != 1:
            raise ConfigError(
                "a Target is Target(psnr=30), Target(computed_share=0.25) or "
                "Target(attention_error=0.02)"
            )
        if self.attention_error is not None and not 0 < self.attention_error < 1:
            raise ConfigError(
                f"attention_error is {self.attention_error}; give a relative error below 1"
            )
        if self.psnr is not None and not 0 < self.psnr < MOST_PSNR:
            raise ConfigError(f"psnr is {self.psnr}; give decibels between 0 and {MOST_PSNR:g}")
        if self.computed_share is not None and not 0 < self.computed_share < 1:
            raise ConfigError(f"computed_share is {self.computed_share}; give a part of 1")


@dataclass(frozen=True)
class TuningRun:
    """One closed-loop check of a plan: its config, and what it gave on the prompts.

    Attributes:
        config: made of the plan.
        computed_share: share of the transformer calls that were computed.
        psnr: mean over the samples in dB.
        psnr_min: the worst sample's, in dB.
    """

    config: AccelerationConfig
    computed_share: float
    psnr: float
    psnr_min: float

    def level(self, statistic: str) -> float:
        """Return `psnr` (`mean`) or `psnr_min` (`min`)."""
        return self.psnr if statistic == "mean" else self.psnr_min

    def reaches(self, target: Target) -> bool:
        """Whether it holds what a target of steps asks for."""
        if target.psnr is not None:
            return self.level(target.statistic) >= target.psnr
        return self.computed_share <= (target.computed_share or 0.0) + 1e-9


def _trajectories(
    recordings: Sequence[Recording],
) -> tuple[Trajectory, Trajectory | None, float]:
    """Return the first branch's trajectory, the difference's, and its weight in the output."""
    steps = recordings[0].steps
    if not all(s.additive and s.sigma is not None and s.sigma_next is not None for s in steps):
        raise UnsupportedError(
            "tune needs a scheduler that adds its outputs up (flow-matching Euler, Euler, DDIM "
            "without clipping), and gets them as they are (no EDM); here, use adaptive_taylor"
        )
    widths = np.array([(s.sigma_next or 0.0) - (s.sigma or 0.0) for s in steps])
    scales = np.array([s.latent_scale for s in steps])

    def trajectory(grams: list[np.ndarray]) -> Trajectory:
        # The mean: charging each gap by the sample that suffers most was tried, and which samples
        # come out wrong under an unseen prompt did not follow it.
        return Trajectory(np.concatenate(grams).mean(0), widths, scales)

    first = [r.first for r in recordings if r.first is not None]
    difference = [r.difference for r in recordings if r.difference is not None]
    if len(first) < len(recordings) or len(difference) < len(recordings):
        return trajectory([r.guided for r in recordings]), None, 0.0
    # guided = first + weight * difference, whatever the guidance is called
    along, length = sum(r.along for r in recordings), sum(r.length for r in recordings)
    return trajectory(first), trajectory(difference), along / max(length, 1e-20)


def _config(plan: Plan, total: int) -> AccelerationConfig:
    return AccelerationConfig(
        cache=StepMaskConfig(
            steps=plan.steps,
            total=total,
            order=1,
            correction="auto",
            guidance="independent" if plan.others is None else "difference",
            guidance_steps=plan.others,
        ),
        label=f"tuned {len(plan.steps)} of {total} steps",
    )


def _frames(output: Any) -> np.ndarray:
    """Decoded output as uint8, `(B, …)`: what people see, and a quarter of the memory."""
    value = output.frames if hasattr(output, "frames") else output.images
    array = np.asarray(value)
    if not np.isfinite(array).all():
        raise UsageError("a generation came out with NaN or infinity; check weights and dtype")
    return np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)


def _psnrs(result: np.ndarray, dense: np.ndarray) -> list[float]:
    """PSNR of each sample in dB."""
    levels = []
    for ours, theirs in zip(result, dense, strict=True):
        # frame by frame: a clip in float64 would be gigabytes
        squares = [
            np.square(a.astype(np.int32) - b).sum() for a, b in zip(ours, theirs, strict=True)
        ]
        error = float(sum(squares)) / theirs.size
        levels.append(
            MOST_PSNR if error == 0 else min(MOST_PSNR, 10 * float(np.log10(255.0**2 / error)))
        )
    return levels


def _outlook(seconds: float, calls: int) -> str:
    """What is going to be run, where a run takes long."""
    return (
        f"a dense run takes {duration(seconds)}: {calls} of them, then 4 plans for each share and "
        f"some 10 to 20 for each PSNR, each run {calls} times and faster by what it skips"
    )


class Tuner:
    """Records a pipeline once; then makes and checks configs.

    One generation's outputs are held at a time, and after it only their products: `(S, S)` numbers
    a sample for S steps, and the dense frames as bytes.

    Args:
        pipe: an unaccelerated pipeline with one transformer.
        calls: arguments of the pipeline call, one mapping per generation, e.g. `{"prompt": …}`; a
            few suffice, since which steps matter hardly depends on the prompt.
        seed: the noise of generation i is drawn with `seed + i`.
        progress: called with one line per generation.
        memory_budget: bytes, or text such as `2GB`, for the outputs of one generation; what exceeds
            it is spooled to a temporary file.

    Raises:
        ConfigError: too few steps to skip any, or an unreadable budget.
        UnsupportedError: two transformers, or a scheduler that does not add its outputs up.
        UsageError: an accelerated pipeline, unusable calls, broken output, or no room to spool.
    """

    def __init__(
        self,
        pipe: Any,
        calls: Sequence[Mapping[str, Any]],
        seed: int = 0,
        progress: Callable[[str], None] = lambda line: None,
        memory_budget: int | str = "4GB",
    ) -> None:
        if not calls:
            raise UsageError("tune needs at least one call to learn from")
        for call in calls:
            given = sorted({"output_type", "generator"} & set(call))
            if given:
                raise UsageError(f"tune sets {given[0]} itself; leave it out of the call")
            check_call(pipe, call, "tune")
        transformers, adapter = transformers_of(pipe)
        for name, transformer in transformers.items():
            refuse_split(name, transformer, "tune")
        if session_of(transformers) is not None:
            raise UsageError("tune needs the dense pipeline; call ditaccel.restore(pipe) first")
        if len(transformers) > 1:
            raise UnsupportedError(
                "tune works on pipelines with one transformer; for two, use adaptive_taylor"
            )
        ((name, transformer),) = transformers.items()
        budget = MemoryBudget.parse(memory_budget)
        assert budget is not None
        self._pipe, self._calls, self._seed, self._progress = pipe, list(calls), seed, progress
        recordings: list[Recording] = []
        self._dense: list[np.ndarray] = []
        for i in range(len(self._calls)):
            progress(f"dense run {i + 1} of {len(self._calls)}")
            run, start = partial(self._generate, i), time.monotonic()
            frames, recording = record(pipe, name, transformer, adapter, run, budget)
            if i == 0 and time.monotonic() - start > _LONG:
                progress(_outlook(time.monotonic() - start, len(self._calls)))
            self._dense.append(frames)
            recordings.append(recording)
        self.total = len(recordings[0].steps)
        if len({len(r.steps) for r in recordings}) > 1:
            raise UsageError("all calls must have the same number of steps")
        first, difference, weight = _trajectories(recordings)
        progress("searching")
        fronts = [plans(first, difference, weight, warmup) for warmup in _WARMUPS]
        self.plans = [front for front in fronts if front]
        if not self.plans:
            raise ConfigError(f"{self.total} steps leave nothing to skip; use more steps")
        self._checked: dict[Plan, TuningRun] = {}

    def _generate(self, i: int) -> np.ndarray:
        # drawn on the CPU on every device: the noise must not depend on the machine
        generator = torch.Generator("cpu").manual_seed(self._seed + i)
        return _frames(self._pipe(**self._calls[i], output_type="np", generator=generator))

    def check(self, plan: Plan) -> TuningRun:
        """Run a plan on all calls; returns what it gave."""
        if plan not in self._checked:
            config = _config(plan, self.total)
            levels: list[float] = []
            with accelerated(self._pipe, config):
                for i, dense in enumerate(self._dense):
                    levels += _psnrs(self._generate(i), dense)
                share = report_of(self._pipe).computed_share
            run = TuningRun(config, share, float(np.mean(levels)), min(levels))
            self._progress(
                f"{config.label}: share {run.computed_share:.3f}, {run.psnr:.1f} dB, worst "
                f"{run.psnr_min:.1f} dB"
            )
            self._checked[plan] = run
        return self._checked[plan]

    @property
    def runs(self) -> list[TuningRun]:
        """All that were run, for whatever target."""
        return list(self._checked.values())

    def at_share(self, share: float, statistic: str = "mean") -> TuningRun:
        """Return the best checked plan that computes no more than `share` of the calls.

        Of two within 1 dB the one with the longer warm-up is taken, and that is said.

        Args:
            share: between 0 and 1.
            statistic: `mean` or `min` of the samples' PSNR decides which is best.

        Raises:
            ConfigError: no plan computes so little.
        """
        choice("statistic", statistic, STATISTICS)
        if not any(best_within(self.plans, share, self.check)):
            least = min(p.share for front in self.plans for p in front)
            raise ConfigError(f"computed_share {share:g} is out of reach; at least {least:.3f}")
        within = {p: r for p, r in self._checked.items() if r.computed_share <= share + 1e-9}

        def level(plan: Plan) -> float:
            return within[plan].level(statistic)

        best = max(within, key=level)
        safer = max((p for p in self.plans[0] if p in within), key=level, default=best)
        if best is safer or level(best) >= level(safer) + _MARGIN:
            return within[best]
        if level(best) > level(safer):
            self._progress(
                f"{within[safer].config.label} is taken for its longer warm-up: the best, "
                f"{within[best].config.label}, has only {level(best) - level(safer):.1f} dB more"
            )
        return within[safer]

    def at_psnr(self, psnr: float, statistic: str = "mean") -> TuningRun:
        """Return the checked plan with the least computation that reaches `psnr`.

        Every plan that this tuner has run counts, whatever it was run for. Where none reaches it,
        a warning says so, and the run with the highest level is returned (`TuningRun.reaches`).

        Args:
            psnr: in dB.
            statistic: `mean` or `min` of the samples' PSNR has to reach it.
        """
        choice("statistic", statistic, STATISTICS)
        found = cheapest_good(
            self.plans, self.check, lambda: self.runs, lambda run: run.level(statistic) >= psnr
        )
        if found is not None:
            return found
        best = max(self.runs, key=lambda r: r.level(statistic))
        of = "" if statistic == "mean" else " for the worst sample"
        warn(
            f"no plan that was run reaches {psnr:g} dB{of}; the best has "
            f"{best.level(statistic):.1f} dB, with {100 * best.computed_share:.0f} % of the calls "
            "computed"
        )
        return best

    def reach(self, target: Target) -> TuningRun:
        """Return the checked plan that serves a target best."""
        if target.psnr is not None:
            return self.at_psnr(target.psnr, target.statistic)
        assert target.computed_share is not None
        return self.at_share(target.computed_share, target.statistic)


def calibrated_config(calibration: Calibration, error: float) -> AccelerationConfig:
    """The config of a calibration, with its target as label."""
    label = f"attention within {100 * error:g} %"
    return AccelerationConfig(attention=calibration.config, label=label)


def no_saving(calibration: Calibration, error: float) -> str:
    """Say that a calibration found nothing worth skipping."""
    mean = sum(calibration.density) / len(calibration.density)
    return (
        f"within an error of {error:g} per layer {100 * mean:.0f} % of the attention is kept, and "
        f"above {100 * calibration.break_even:.0f} % sparse attention costs time here, so a run "
        "would go dense; allow a larger error, or leave attention alone for this model"
    )


def tune(
    pipe: Any,
    prompts: Prompt | Iterable[Prompt],
    target: Target,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
    memory_budget: int | str = "4GB",
    **call: Any,
) -> AccelerationConfig:
    """Search the steps to compute for a pipeline, its scheduler and its step count.

    One dense generation per prompt is recorded; dynamic programming finds the computed steps that
    leave the least error in the latents (`schedule_search`); a few generations check the result
    against the target. Save the config with `ditaccel.config.dump`, or run it with `accelerate`.

    Args:
        pipe: an unaccelerated pipeline with one transformer.
        prompts: a prompt or several, or mappings of call arguments (`{"class_labels": [3]}`).
        target: `Target(psnr=30)`, `Target(psnr=30, statistic="min")` for the worst sample,
            `Target(computed_share=0.25)`, or `Target(attention_error=0.02)`, which calibrates
            attention instead (`tuning.calibration`).
        seed: seed of the first generation.
        progress: called with one line per generation.
        memory_budget: bytes, or text such as `2GB`, for the recorded outputs of one generation;
            what exceeds it is spooled to a temporary file.
        **call: arguments of every pipeline call, e.g. `num_inference_steps=30, height=512`.

    Returns:
        A step mask made for this number of steps; another number is refused when it runs.

    Raises:
        ConfigError: a target out of range, a share out of reach, or too few steps to skip any. A
            PSNR out of reach is a warning, and the best plan is returned; so is a calibration that
            would skip nothing.
        UnsupportedError: two transformers, or a scheduler that does not add its outputs up.
    """
    if not isinstance(target, Target):
        raise ConfigError(f"target is {target!r}; give a Target, such as Target(psnr=35)")
    prompts = listed(prompts)
    seed = checked_value("tune", "seed", int, seed)
    if target.attention_error is not None:
        error = target.attention_error
        calibration = calibrate(
            pipe, prompts, target_error=error, seed=seed, progress=progress, **call
        )
        if not calibration.saves:
            warn(no_saving(calibration, error))
        return calibrated_config(calibration, error)
    calls = as_calls(prompts, call)
    return Tuner(pipe, calls, seed, progress, memory_budget).reach(target).config
