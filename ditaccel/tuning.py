"""tune: record dense runs, search the computed steps, and hold the result against a target."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ._compat import ContextListener
from .api import _transformers, accelerated
from .api import report as report_of
from .caching.step_mask import StepMaskConfig
from .config import AccelerationConfig
from .denoising import DenoisingStep, DenoisingTracker
from .errors import ConfigError, UnsupportedError, UsageError
from .patching import PatchLedger
from .schedule_search import Plan, Trajectory, plans
from .session import session_of

_CAP = 99.0


@dataclass(frozen=True)
class Target:
    """What a tuned config must reach; give one of the two.

    Attributes:
        psnr: mean PSNR to the dense output in dB, on the prompts given; the fastest config found
            that reaches it is taken.
        computed_share: share of the transformer calls that may be computed, between 0 and 1; the
            best config found that keeps to it is taken.
    """

    psnr: float | None = None
    computed_share: float | None = None

    def __post_init__(self) -> None:
        if (self.psnr is None) == (self.computed_share is None):
            raise ConfigError("a Target is Target(psnr=30) or Target(computed_share=0.25)")
        if self.psnr is not None and not 0 < self.psnr < _CAP:
            raise ConfigError(f"psnr is {self.psnr}; give decibels between 0 and {_CAP:g}")
        if self.computed_share is not None and not 0 < self.computed_share < 1:
            raise ConfigError(f"computed_share is {self.computed_share}; give a part of 1")


@dataclass(frozen=True)
class TuningRun:
    """One closed-loop check of a plan: its config, and what it gave on the prompts."""

    config: AccelerationConfig
    computed_share: float
    psnr: float


class _Recording:
    """Outputs of all calls of one dense generation."""

    def __init__(self) -> None:
        self.steps: list[DenoisingStep] = []
        self.outputs: dict[str, list[torch.Tensor]] = {}
        self.guided: list[torch.Tensor] = []


@contextmanager
def _recorded(pipe: Any) -> Iterator[_Recording]:
    """Record one generation; nothing is left on the pipeline."""
    transformers, adapter = _transformers(pipe)
    if session_of(transformers) is not None:
        raise UsageError("tune needs the dense pipeline; call ditaccel.restore(pipe) first")
    if len(transformers) > 1:
        raise UnsupportedError(
            "tune works on pipelines with one transformer; for two, use adaptive_taylor"
        )
    ((name, transformer),) = transformers.items()
    recording, tracker, ledger = _Recording(), DenoisingTracker(pipe), PatchLedger(object())
    listener = ContextListener(transformer)
    ledger.on_undo(listener.detach)
    step = pipe.scheduler.step

    def around(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        timestep = kwargs.get(adapter.timestep, args[1] if len(args) > 1 else None)
        place = tracker.observe(name, timestep, listener.current())
        if not recording.steps or recording.steps[-1].index != place.index:
            recording.steps.append(place)
        recording.outputs.setdefault(place.branch, []).append(output[0].detach().float().cpu())
        return output

    def watched(model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        recording.guided.append(model_output.detach().float().cpu())
        return step(model_output, *args, **kwargs)

    before = vars(pipe.scheduler).get("step")

    def put_back() -> None:
        if before is None:
            vars(pipe.scheduler).pop("step", None)
        else:
            pipe.scheduler.step = before

    try:
        ledger.intercept(transformer, around)
        ledger.on_undo(put_back)
        pipe.scheduler.step = watched
        yield recording
    finally:
        ledger.undo()


def _gram(series: list[torch.Tensor]) -> np.ndarray:
    # costs are small differences of large products: float32 would rank noise
    flat = torch.stack(series).flatten(1).double()
    return (flat @ flat.T / flat.shape[1]).numpy()


def _trajectories(
    recordings: list[_Recording],
) -> tuple[Trajectory, Trajectory | None, float]:
    """Return the first branch's trajectory, the difference's, and its weight in the output."""
    steps = recordings[0].steps
    if not all(s.additive and s.sigma is not None and s.sigma_next is not None for s in steps):
        raise UnsupportedError(
            "tune needs a scheduler that adds its outputs up (flow-matching Euler, Euler, DDIM "
            "without clipping); with this one, use adaptive_taylor"
        )
    widths = np.array([(s.sigma_next or 0.0) - (s.sigma or 0.0) for s in steps])
    scales = np.array([s.latent_scale for s in steps])

    def trajectory(series: Callable[[_Recording], list[torch.Tensor]]) -> Trajectory:
        return Trajectory(np.mean([_gram(series(r)) for r in recordings], 0), widths, scales)

    names = list(recordings[0].outputs)
    counts = {len(r.outputs[n]) for r in recordings for n in r.outputs}
    if len(names) != 2 or counts != {len(steps)}:
        return trajectory(lambda r: r.guided), None, 0.0
    first, other = names

    def difference(r: _Recording) -> list[torch.Tensor]:
        return [b - a for a, b in zip(r.outputs[first], r.outputs[other], strict=True)]

    # guided = first + weight * difference, whatever the guidance is called
    top = bottom = 0.0
    for r in recordings:
        for guided, a, d in zip(r.guided, r.outputs[first], difference(r), strict=True):
            if guided.shape != a.shape:
                return trajectory(lambda r: r.guided), None, 0.0
            top += float(((guided - a) * d).sum())
            bottom += float((d * d).sum())
    weight = top / max(bottom, 1e-20)
    return trajectory(lambda r: r.outputs[first]), trajectory(difference), weight


def _config(plan: Plan, total: int) -> AccelerationConfig:
    return AccelerationConfig(
        StepMaskConfig(
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
    value = output.frames if hasattr(output, "frames") else output.images
    array = np.asarray(value, dtype=np.float64)
    return np.round(np.clip(array, 0, 1) * 255)


def _psnr(result: np.ndarray, dense: np.ndarray) -> float:
    error = float(np.mean((result - dense) ** 2))
    return _CAP if error == 0 else min(_CAP, 10 * float(np.log10(255.0**2 / error)))


class Tuner:
    """Records a pipeline once; then makes and checks configs.

    Args:
        pipe: an unaccelerated pipeline with one transformer.
        calls: arguments of the pipeline call, one mapping per generation, e.g. `{"prompt": …}`; a
            few suffice, since which steps matter hardly depends on the prompt.
        seed: the noise of generation i is drawn with `seed + i`.
        progress: called with one line per generation.

    Raises:
        UnsupportedError: two transformers, or a scheduler that does not add its outputs up.
    """

    def __init__(
        self,
        pipe: Any,
        calls: Sequence[Mapping[str, Any]],
        seed: int = 0,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        if not calls:
            raise UsageError("tune needs at least one call to learn from")
        for call in calls:
            given = sorted({"output_type", "generator"} & set(call))
            if given:
                raise UsageError(f"tune sets {given[0]} itself; leave it out of the call")
        self._pipe, self._calls, self._seed, self._progress = pipe, list(calls), seed, progress
        recordings, self._dense = [], []
        for i in range(len(self._calls)):
            progress(f"dense run {i + 1} of {len(self._calls)}")
            with _recorded(pipe) as recording:
                self._dense.append(self._generate(i))
            recordings.append(recording)
        self.total = len(recordings[0].steps)
        if len({len(r.steps) for r in recordings}) > 1:
            raise UsageError("all calls must have the same number of steps")
        first, difference, weight = _trajectories(recordings)
        progress("searching")
        fronts = [plans(first, difference, weight, warmup) for warmup in (1, 3)]
        self.plans = [front for front in fronts if front]
        if not self.plans:
            raise ConfigError(f"{self.total} steps leave nothing to skip; use more steps")
        self._checked: dict[Plan, TuningRun] = {}

    def _generate(self, i: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(self._seed + i)
        return _frames(self._pipe(**self._calls[i], output_type="np", generator=generator))

    def check(self, plan: Plan) -> TuningRun:
        """Run a plan on all calls; returns what it gave."""
        if plan not in self._checked:
            config = _config(plan, self.total)
            levels, shares = [], []
            with accelerated(self._pipe, config):
                for i, dense in enumerate(self._dense):
                    levels.append(_psnr(self._generate(i), dense))
                shares.append(report_of(self._pipe).computed_share)
            run = TuningRun(config, float(np.mean(shares)), float(np.mean(levels)))
            self._progress(f"{config.label}: share {run.computed_share:.3f}, {run.psnr:.1f} dB")
            self._checked[plan] = run
        return self._checked[plan]

    def at_share(self, share: float) -> TuningRun:
        """Return the best checked plan that computes no more than `share` of the calls."""
        within = [[p for p in front if p.share <= share] for front in self.plans]
        runs = [self.check(front[-1]) for front in within if front]
        if not runs:
            least = min(p.share for front in self.plans for p in front)
            raise ConfigError(f"computed_share {share:g} is out of reach; at least {least:.3f}")
        return max(runs, key=lambda r: r.psnr)

    def at_psnr(self, psnr: float) -> TuningRun:
        """Return the checked plan with the least computation that reaches `psnr`."""
        runs = []
        for front in self.plans:
            low, high = 0, len(front) - 1
            while low < high:
                middle = (low + high) // 2
                if self.check(front[middle]).psnr >= psnr:
                    high = middle
                else:
                    low = middle + 1
            runs.append(self.check(front[low]))
        reached = [r for r in runs if r.psnr >= psnr]
        if not reached:
            best = max(runs, key=lambda r: r.psnr)
            warnings.warn(
                f"ditaccel: no plan reaches {psnr:g} dB; the best has {best.psnr:.1f} dB",
                stacklevel=3,
            )
            return best
        return min(reached, key=lambda r: r.computed_share)


def tune(
    pipe: Any,
    prompts: Sequence[str | Mapping[str, Any]],
    target: Target,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
    **call: Any,
) -> AccelerationConfig:
    """Search the steps to compute for a pipeline, its scheduler and its step count.

    One dense generation per prompt is recorded; dynamic programming finds the computed steps that
    leave the least error in the latents (`schedule_search`); a few generations check the result
    against the target. Save the config with `ditaccel.config.dump`, or run it with `accelerate`.

    Args:
        pipe: an unaccelerated pipeline with one transformer.
        prompts: prompts, or mappings of call arguments (`{"class_labels": [3]}`).
        target: `Target(psnr=30)` or `Target(computed_share=0.25)`.
        seed: seed of the first generation.
        progress: called with one line per generation.
        **call: arguments of every pipeline call, e.g. `num_inference_steps=30, height=512`.

    Returns:
        A step mask made for this number of steps; another number is refused when it runs.

    Raises:
        ConfigError: a target out of range, a share out of reach, or too few steps to skip any. A
            PSNR out of reach is a warning, and the best plan is returned.
        UnsupportedError: two transformers, or a scheduler that does not add its outputs up.
    """
    stray = [p for p in prompts if not isinstance(p, (str, Mapping))]
    if stray:
        raise UsageError(f"a prompt is text or a mapping of call arguments, not {stray[0]!r}")
    calls = [{**call, **({"prompt": p} if isinstance(p, str) else p)} for p in prompts]
    tuner = Tuner(pipe, calls, seed, progress)
    if target.psnr is not None:
        return tuner.at_psnr(target.psnr).config
    assert target.computed_share is not None
    return tuner.at_share(target.computed_share).config
