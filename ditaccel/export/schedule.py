"""The schedule of a config: its computed steps, what a skipped step gets, and the noise levels."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ..caching.engine.policy import CachePolicy, computed_steps, policy_of
from ..config import AccelerationConfig, CacheConfig
from ..core.denoising.schedulers import set_up
from ..errors import ConfigError


@dataclass(frozen=True)
class ExportedSchedule:
    """What other engines can be told of a config.

    Attributes:
        steps: of the loop.
        computed: indices of the computed ones, from 0.
        payload: what a skipped step gets a forecast of: `output`, `hidden` or `residual`.
        order: of the forecast; 0 reuses the newest computed one.
        orders: one order per computed step, where gaps differ; else empty.
        guidance: what guidance branches have to do with each other.
        label: of the config.
        lost: what a plain list of steps cannot say, in words; empty where nothing is lost.
        timesteps: of the scheduler, where a model was given.
        sigmas: likewise, with the level that the last step leads to.
    """

    steps: int
    computed: tuple[int, ...]
    payload: str
    order: int
    orders: tuple[int, ...] = ()
    guidance: str = "independent"
    label: str = ""
    lost: tuple[str, ...] = ()
    timesteps: list[float] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)

    @property
    def mask(self) -> list[int]:
        """1 for a computed step, 0 for a skipped one."""
        return [int(step in self.computed) for step in range(self.steps)]

    @property
    def longest_gap(self) -> int:
        """Skipped steps in a row, at most."""
        ends = (*self.computed, self.steps)
        return max(then - now - 1 for now, then in pairwise(ends))


def schedule_of(
    config: AccelerationConfig, steps: int | None = None, scheduler: Any = None
) -> ExportedSchedule:
    """The schedule of a config whose steps are known before a run.

    Args:
        config: names a caching method.
        steps: of the loop; by default those that the config was made for.
        scheduler: of a model, for timesteps and noise levels; it is left alone.

    Raises:
        ConfigError: it has no caching method, one that decides in the run, or no step count.
    """
    cache = config.cache
    if cache is None:
        raise ConfigError("this config has no caching method, so it has no schedule to export")
    if config.steps != "keep":
        raise ConfigError(
            f"this config chooses the number of steps of a call (steps: {config.steps}), and a "
            "schedule is for a loop of one length; leave that out of the config, and say how many "
            "steps the loop has"
        )
    policy = policy_of(cache)
    steps = steps or getattr(cache, "total", None)
    if not policy.gate.by_place:
        raise ConfigError(
            f"{cache.method} decides in the run which steps are computed, so there is no schedule "
            "to export; make one for a step count with ditaccel tune, and export that"
        )
    if steps is None:
        raise ConfigError(
            f"{cache.method} is for loops of any length; say how many steps the loop has", "steps"
        )
    _check_total(cache, steps)
    computed = computed_steps(policy, steps)
    assert computed is not None
    levels = {} if scheduler is None else _levels(scheduler, steps)
    orders = tuple(getattr(cache, "orders", ()))
    return ExportedSchedule(
        steps,
        computed,
        policy.target if policy.granularity == "last_block" else "modules",
        policy.order,
        orders if len(set(orders)) > 1 and len(orders) == len(computed) else (),
        policy.guidance,
        config.name,
        _lost(policy, orders),
        **levels,
    )


def _check_total(cache: CacheConfig, steps: int) -> None:
    total = getattr(cache, "total", None)
    if total not in (None, steps) and not getattr(cache, "resample", False):
        raise ConfigError(
            f"the config was made for {total} steps, not for {steps}; move it to the noise levels "
            "of such a loop with its option resample=true"
        )


def _lost(policy: CachePolicy, orders: tuple[int, ...]) -> tuple[str, ...]:
    """What of a policy a list of computed steps does not say."""
    said = []
    if policy.guidance != "independent":
        said.append(f"guidance={policy.guidance!r}: every branch of a computed step is computed")
    if policy.correction != "never":
        said.append("gap correction")
    if len(set(orders)) > 1:
        said.append("an order of its own for each gap")
    if policy.order and policy.basis != "taylor":
        said.append(f"basis={policy.basis!r}")
    return tuple(said)


def _levels(scheduler: Any, steps: int) -> dict[str, list[float]]:
    """Timesteps and noise levels that a scheduler gives a loop."""
    options = getattr(scheduler, "config", None) or {}
    if options.get("use_dynamic_shifting"):
        return {}  # they depend on the size of the picture
    scheduler = set_up(scheduler, steps)
    if scheduler is None:
        return {}  # its pipeline would hand more over
    sigmas = getattr(scheduler, "sigmas", None)
    return {
        "timesteps": [float(t) for t in scheduler.timesteps],
        "sigmas": [] if sigmas is None else [float(s) for s in sigmas],
    }
