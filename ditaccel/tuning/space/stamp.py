"""Stamps a tuned config with what it was tuned on, and with the profile of its errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...api import accelerated, report
from ...config import AccelerationConfig, Tuned
from ...core.denoising.schedulers import described
from ...core.transformers import transformers_of
from ...io.provenance import device_of, versions
from ...pipelines import FamilyAdapter
from ...reports.drift import profile_of
from ...sessions.tuned_for import dtype_of, weights_of
from .store import name_of

# Generations that show what errors are usual.
_PROFILED = 8
# Of a normal distribution, 95 % lie within so many deviations.
_WITHIN = 1.96


def interval(values: Sequence[float]) -> tuple[float, ...]:
    """A mean, and the ends of its 95 % interval by its standard error, where there are several."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return (mean,)
    half = _WITHIN * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return mean, mean - half, mean + half


def stamped(
    pipe: Any,
    config: AccelerationConfig,
    calls: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Sequence[float]],
    run: Callable[[Mapping[str, Any], int], Any],
    adapter: FamilyAdapter | None = None,
) -> AccelerationConfig:
    """The config with its provenance; a few generations with it show the errors that are usual.

    Args:
        pipe: the unaccelerated pipeline that it was tuned on.
        config: that was found.
        calls: that were learnt from.
        figures: name -> values of the samples or runs.
        run: makes a call; gets it and its place among the calls.
        adapter: of the transformers; by default that of their family.
    """
    transformers, family = transformers_of(pipe, adapter)
    errors: list[dict[int, float]] = []
    steps: int | None = None
    latents: tuple[int, ...] = ()
    with accelerated(pipe, replace(config, tuned=Tuned(), scheduler=""), adapter=adapter):
        for i, call in enumerate(calls[:_PROFILED]):
            run(call, i)
            seen = report(pipe)
            errors.append(seen.errors)
            steps, latents = seen.loop_steps, seen.latents
    device = device_of(pipe)
    tuned = Tuned(
        model=type(pipe).__name__,
        weights=weights_of(pipe),
        family=family.name,
        steps=steps,
        latents=latents,
        dtype=dtype_of(next(iter(transformers.values()))),
        device=f"{device['name']}, {device['threads']} threads"
        if device["threads"]
        else device["name"],
        prompts=len(calls),
        prompts_hash=name_of(*calls),
        versions=versions(),
        figures={name: interval(values) for name, values in figures.items()},
        profile=profile_of(errors),
    )
    return replace(config, scheduler=described(pipe.scheduler), tuned=tuned)
