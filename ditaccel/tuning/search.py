"""tune: what a pipeline is tuned for, and by whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..config import AccelerationConfig, require
from ..config.option_types import checked_value
from ..core.denoising.schedulers import described
from ..errors import ConfigError
from ..io.prompts import Prompt, as_calls, listed
from ..io.schedulers import with_scheduler
from ..pipelines import FamilyAdapter
from ..warning import warn
from .calibration import Calibration, calibrate
from .refine import Refine
from .space.race import Aim
from .space.search import SpaceTuner
from .space.space import Space
from .target import Target
from .tuner import PAIRS, Tuner, paired


def scheduler_of(pipe: Any) -> str:
    """What a config that was tuned on a pipeline names as its scheduler."""
    scheduler = getattr(pipe, "scheduler", None)
    return "" if scheduler is None else described(scheduler)


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
    steps: int | None = None,
    pairs: int | None = None,
    scheduler: str | None = None,
    refine: int | Refine = 0,
    space: Space | str | None = None,
    adapter: FamilyAdapter | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
    memory_budget: int | str = "4GB",
    **call: Any,
) -> AccelerationConfig:
    """Search the steps to compute for a pipeline, its scheduler and its step count.

    A dense generation per prompt-seed pair is recorded; dynamic programming finds the steps that
    leave the least error; a few generations check the result, and more of them refine it.

    Args:
        pipe: an unaccelerated pipeline, with one transformer or two that take over from each other.
        prompts: a prompt or several, or mappings of call arguments (`{"class_labels": [3]}`).
        target: such as `Target(psnr=30, statistic="p10")` or `Target(computed_share=0.25)`; with
            `Target(attention_error=0.02)` attention is calibrated instead (`tuning.calibration`);
            `Target(psnr=30, share=0.9)` learns from the first prompts and is tested on all others.
        steps: scheduler steps; by default those that the pipeline takes by itself.
        pairs: prompt-seed pairs to learn from, the prompts in turn, each time with another seed; by
            default 8, or one per prompt if there are more. For a promise, so many prompts (8).
        scheduler: short name of another one to tune for (`ditaccel.io.schedulers`): `unipc`.
        refine: plans to try around the best one, or a `Refine` (annealing, time limit, resume).
        space: what else may vary, in measured seconds: a `Space`, or its text (`Space.parse`).
        adapter: what ditaccel must know of a model of your own, as in `accelerate`.
        seed: seed of the first generation.
        progress: called with one line per generation.
        memory_budget: bytes, or text such as `2GB`, for one generation's outputs, see `Tuner`.
        **call: arguments of every pipeline call, e.g. `height=512`.

    Returns:
        A step mask for this number of steps (another one is refused) and this scheduler.

    Raises:
        ConfigError: a target out of range, a share out of reach, or too few steps to skip any. What
            no config reaches or can promise, and a calibration that skips nothing, is a warning.
        UnsupportedError: a scheduler that draws noise or clips.
        UsageError: `Refine.resume` is of another search, or too few prompts for a promise.
    """
    if not isinstance(target, Target):
        raise ConfigError(f"target is {target!r}; give a Target, such as Target(psnr=35)")
    seed = checked_value("tune", "seed", int, seed)
    calls = as_calls(listed(prompts), _with_steps(call, steps))
    pairs = checked_value("tune", "pairs", int | None, pairs)
    require(pairs is None or pairs >= 1, f"tune: pairs is {pairs}; it must be 1 or more")
    if not isinstance(refine, Refine):
        refine = Refine(trials=checked_value("tune", "refine", int, refine))
    with with_scheduler(pipe, scheduler):
        options = seed, progress, memory_budget, refine, adapter
        found = _found(pipe, calls, target, space, pairs, options)
        return replace(found, scheduler=scheduler_of(pipe))


def _in_space(
    pipe: Any,
    calls: list[dict[str, Any]],
    target: Target,
    space: Space | str,
    pairs: int | None,
    options: tuple[Any, ...],
) -> AccelerationConfig:
    """The config for a target in a space; `options` as in `_found`."""
    space = space if isinstance(space, Space) else Space.parse(space)
    seed, progress, memory_budget, refine, adapter = options
    require(not refine.trials, "refine is for computed steps alone; leave space out, or refine")
    promise, tell = target.promise, progress
    learnt = paired(calls, pairs) if promise is None else calls[: pairs or PAIRS]
    held_out = calls[len(learnt) :]
    if promise is not None:
        promise.check_count(len(held_out), len(learnt))
    Aim.of(target, 1.0)  # refuses what it cannot serve before anything runs
    tuner = SpaceTuner(pipe, learnt, space, seed, progress, memory_budget, adapter)
    if promise is not None:
        promised = tuner.promised(promise, held_out)
        (tell if promised.held else warn)(promised.words)
        return promised.config
    came = tuner.reach(target)
    (tell if came.reached and came.complete else warn)(came.words)
    return tuner.stamped(came)


def _found(
    pipe: Any,
    calls: list[dict[str, Any]],
    target: Target,
    space: Space | str | None,
    pairs: int | None,
    options: tuple[Any, ...],
) -> AccelerationConfig:
    """The config for a target; `options` are those of a `Tuner` behind the calls."""
    if space is not None or target.needs_space:
        return _in_space(pipe, calls, target, space or "", pairs, options)
    if (error := target.attention_error) is not None:
        seed, progress, _, _, adapter = options
        return _calibrated(pipe, calls, error, seed, progress, adapter)
    promise = target.promise
    if promise is None:
        tuner = Tuner(pipe, paired(calls, pairs), *options)
        return tuner.stamped(tuner.reach(target))
    learnt, held_out = calls[: pairs or PAIRS], calls[pairs or PAIRS :]
    promise.check_count(len(held_out), len(learnt))
    tuner = Tuner(pipe, learnt, *options)
    came = tuner.promised(promise, held_out)
    tell: Callable[[str], None] = options[1] if came.held else warn
    tell(came.words)
    return tuner.stamped(came.run)


def _calibrated(
    pipe: Any,
    calls: Sequence[Mapping[str, Any]],
    error: float,
    seed: int,
    progress: Callable[[str], None],
    adapter: FamilyAdapter | None,
) -> AccelerationConfig:
    found = calibrate(
        pipe, calls, target_error=error, seed=seed, progress=progress, adapter=adapter
    )
    if not found.saves:
        warn(no_saving(found, error))
    return calibrated_config(found, error)


def _with_steps(call: Mapping[str, Any], steps: int | None) -> dict[str, Any]:
    """Arguments of the pipeline call, with the number of steps under the pipeline's name for it."""
    if steps is None:
        return dict(call)
    if call.get("num_inference_steps", steps) != steps:
        raise ConfigError(
            f"steps is {steps}, and num_inference_steps is {call['num_inference_steps']}; give "
            "steps alone"
        )
    return {**call, "num_inference_steps": steps}
