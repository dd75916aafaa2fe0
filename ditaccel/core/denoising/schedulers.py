"""What can be told of a scheduler from outside: its noise levels, and where it stands.

How it steps is measured (`probing.py`). A loop that has no scheduler may give its noise levels
instead (`GivenSigmas`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ...errors import ConfigError


class GivenSigmas:
    """The noise levels of a loop without a scheduler, in the place of one.

    Such a loop takes Euler steps: it adds `(sigma_next - sigma) * output` to the latents.

    Args:
        sigmas: noise levels before each step, falling, with the one that the last step leads to;
            where that is not 0, a 0 is added, as diffusers does. Levels up to 1 are those of flow
            matching, and the transformer's timesteps must follow them (`sigma`, `1000 sigma`, or
            reversed); higher ones are those of noise prediction, and steps are counted.

    Raises:
        ConfigError: they are not such levels.
    """

    order = 1

    def __init__(self, sigmas: Iterable[Any]) -> None:
        try:
            levels = [float(sigma) for sigma in sigmas]
        except (TypeError, ValueError):
            levels = []
        falling = all(high > low >= 0.0 for high, low in pairwise(levels))
        if len(levels) < 2 or not falling or not math.isfinite(levels[0]):
            raise ConfigError(
                "sigmas must be two or more falling noise levels, as in [1.0, 0.75, 0.5, 0.25, 0.0]"
            )
        if levels[-1] > 0.0:
            levels.append(0.0)
        self.flow = levels[0] <= 1.0
        self.sigmas = torch.tensor(levels, dtype=torch.float64)
        self.timesteps = 1000.0 * self.sigmas[:-1]
        self.num_inference_steps = len(levels) - 1


def followed_by_hand(scheduler: Any, sigmas: Iterable[Any] | None) -> Any:
    """What a loop by hand follows: a scheduler, noise levels, or None where neither is given.

    Raises:
        ConfigError: both are given, or what is given is neither.
    """
    if sigmas is not None:
        if scheduler is not None:
            raise ConfigError("give either scheduler= or sigmas=, not both")
        return GivenSigmas(sigmas)
    if scheduler is not None and not is_scheduler(scheduler):
        raise ConfigError(
            f"scheduler is of type {type(scheduler).__name__}, which is not a scheduler with "
            "set_timesteps() and step(); for a loop without one give sigmas=[...]"
        )
    return scheduler


def wrapped(scheduler: Any) -> Any:
    """What a wrapper of a scheduler stands for; the scheduler itself where it is not one."""
    seen: list[Any] = []
    while not hasattr(type(scheduler), "set_timesteps") and all(scheduler is not s for s in seen):
        seen.append(scheduler)
        inner = [v for v in getattr(scheduler, "__dict__", {}).values() if is_scheduler(v)]
        if not inner:
            break
        scheduler = inner[0]
    return scheduler


def is_scheduler(value: Any) -> bool:
    """Whether an object is a diffusion scheduler, or passes one's attributes on."""
    kind = type(value)
    if hasattr(kind, "set_timesteps"):
        return hasattr(kind, "step")
    own = getattr(value, "__dict__", None)
    if not isinstance(own, dict) or not hasattr(kind, "__getattr__"):
        return False
    return any(hasattr(type(v), "set_timesteps") and hasattr(type(v), "step") for v in own.values())


def described(scheduler: Any) -> str:
    """A scheduler in words that tell it from others: its class, and the order of its solver."""
    inner = wrapped(scheduler)
    order = _options(inner).get("solver_order")
    return type(inner).__name__ + ("" if order is None else f" of order {order}")


def position(scheduler: Any) -> int | None:
    """Where the scheduler stands: a number that moves with each of its steps; None if unknown."""
    for name in ("_step_index", "counter"):  # (PNDM counts)
        value = getattr(scheduler, name, None)
        if isinstance(value, int):
            return value
    return None


def _options(scheduler: Any) -> Mapping[str, Any]:
    return getattr(scheduler, "config", None) or {}


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is for flow matching, as far as its options and its class tell.

    For what has to be known before its timesteps are set; what it does is measured (`probing.py`).
    """
    if isinstance(scheduler, GivenSigmas):
        return scheduler.flow
    options = _options(scheduler)
    return (
        any(c.__name__.startswith("FlowMatch") for c in type(wrapped(scheduler)).__mro__)
        or bool(options.get("use_flow_sigmas", False))
        or options.get("prediction_type") == "flow_prediction"
    )


def set_up(scheduler: Any, steps: int) -> Any | None:
    """A copy of a scheduler, set for a loop; None where it needs more of its pipeline for that.

    Args:
        scheduler: of a pipeline; it is left alone.
        steps: of the loop.
    """
    scheduler = copy.deepcopy(scheduler)
    extra: dict[str, Any] = {"mu": 0.5} if _options(scheduler).get("use_dynamic_shifting") else {}
    if _options(scheduler).get("num_train_timesteps") == 1:
        # it knows one noise level only: its pipelines hand over those of their loop
        extra["sigmas"] = np.linspace(1.0, 0.0, steps + 1)[:-1]
    try:
        scheduler.set_timesteps(steps, **extra)
    except Exception:
        # schedulers raise many types where a pipeline would hand more over
        return None
    return scheduler


def in_use(scheduler: Any) -> bool:
    """Whether somebody has called `set_timesteps`."""
    if getattr(scheduler, "num_inference_steps", None) is not None:
        return True
    timesteps = getattr(scheduler, "timesteps", None)
    if not isinstance(timesteps, torch.Tensor):
        return False
    return len(timesteps) != _options(scheduler).get("num_train_timesteps", 1000)


def sigmas_of(scheduler: Any, schedule: list[float]) -> list[float]:
    """Noise levels before each step and after the last; empty where the scheduler has none.

    Args:
        scheduler: the scheduler.
        schedule: its timesteps.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) >= len(schedule):
        return [float(s) for s in torch.as_tensor(sigmas).tolist()]
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None or not schedule:
        return []
    levels = [float(alphas[int(t)]) for t in schedule]
    # DDIM's last step leads to the alpha of one stride further on, or to its final one.
    steps = getattr(scheduler, "num_inference_steps", None) or 1
    end = int(schedule[-1]) - scheduler.config.num_train_timesteps // steps
    levels.append(float(alphas[end] if end >= 0 else getattr(scheduler, "final_alpha_cumprod", 1)))
    return [math.sqrt((1.0 - level) / max(level, 1e-12)) for level in levels]
