"""Measure the constants that a caching method needs of a model, on dense runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..caching.engine.fitted import Fit, FittedConfig, Recorder
from ..caching.engine.policy import CachePolicy
from ..config import AccelerationConfig, CacheConfig, methods
from ..config.option_types import checked_value
from ..core.transformers import transformers_of
from ..errors import ConfigError, UsageError
from ..io.asking import check_call
from ..io.prompts import Prompt, as_calls
from ..io.schedulers import with_scheduler
from ..sessions.session import Session, session_of
from ..warning import warn


@dataclass(frozen=True, kw_only=True)
class _Recording(CacheConfig):
    """A recorder's policy as the config of a method that no registry knows."""

    method = "recording"
    made: Any = None

    def policy(self) -> CachePolicy:
        """The recorder's policy, one for all transformers of the loop."""
        made: CachePolicy = self.made
        return made


def fitted_methods() -> dict[str, type[FittedConfig]]:
    """The caching methods with constants to be measured, by name."""
    return {name: c for name, c in methods().items() if issubclass(c, FittedConfig)}


def fit(
    pipe: Any,
    config: Any,
    prompts: Prompt | Iterable[Prompt],
    *,
    scheduler: str | None = None,
    seed: int = 1000,
    progress: Callable[[str], None] = lambda line: None,
    **call: Any,
) -> Any:
    """Measure the constants of a caching method on dense runs of a pipeline.

    The constants hold for this model, its scheduler and about this number of steps; they hardly
    depend on the prompt, so that one to ten prompts suffice.

    Args:
        pipe: an unaccelerated pipeline.
        config: of a method that has constants to be measured, e.g. `MagCacheConfig()`; its other
            options are kept.
        prompts: a prompt or several, or mappings of call arguments.
        scheduler: short name of another scheduler to measure with, as in `tune`.
        seed: the noise of generation i is drawn with `seed + i`.
        progress: called with one line per generation, and with what was measured.
        **call: arguments of every pipeline call, e.g. `num_inference_steps=50, height=480`.

    Returns:
        The config with its constants, to be used or saved. What speaks against it is warned of.

    Raises:
        ConfigError: the method has no constants, or the runs did not show enough.
        UnsupportedError: the transformer does not have what the method looks at.
        UsageError: the pipeline is accelerated.
    """
    seed = checked_value("fit", "seed", int, seed)
    calls = as_calls(prompts, call)
    for one in calls:
        check_call(pipe, one, "fit")
    with with_scheduler(pipe, scheduler):
        found = fitted_on(pipe, config, calls, seed, progress)
    for line in found.notes:
        progress(line)
    for line in found.warnings:
        warn(f"{config.method}: {line}")
    return found.config


def fitted_on(
    pipe: Any,
    config: Any,
    calls: Sequence[dict[str, Any]],
    seed: int,
    progress: Callable[[str], None],
) -> Fit:
    """As `fit`, with the pipeline's own calls; what speaks against the config is returned."""
    if not isinstance(config, FittedConfig):
        name = config.__name__ if isinstance(config, type) else type(config).__name__
        known = ", ".join(f"{c.__name__}()" for c in fitted_methods().values())
        raise ConfigError(f"{name} has nothing to be measured; give one of: {known}")
    transformers, _ = transformers_of(pipe)
    if session_of(transformers) is not None:
        raise UsageError("this needs the dense pipeline; call ditaccel.restore(pipe) first")
    policy = config.recording()
    recorder = policy.gate
    assert isinstance(recorder, Recorder)
    session = Session(pipe, transformers, AccelerationConfig(cache=_Recording(made=policy)))
    try:
        for number, call in enumerate(calls):
            progress(f"dense run {number + 1} of {len(calls)}")
            pipe(**call, generator=torch.Generator().manual_seed(seed + number))
    finally:
        session.restore()
    return config.fitted(recorder)
