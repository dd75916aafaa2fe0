"""Options that several methods share, and how they become a policy."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from ...config import CacheConfig, require
from .gate import Gate, StepRules
from .policy import CachePolicy

Basis = Literal["taylor", "newton", "hermite", "exponential", "auto"]
Coordinate = Literal["index", "sigma", "timestep", "log_snr", "auto"]
ForecastTarget = Literal["hidden", "residual", "output"]
Guidance = Literal["independent", "follow", "difference"]
Correction = Literal["auto", "always", "never"]
Reduce = Literal["batch_mean", "worst_sample"]
OnBudget = Literal["refuse", "downgrade"]
# Bytes, or text such as `500MB` or `2 GiB`.
Bytes = int | float | str

MOST_ORDER = 6

_SIZE = re.compile(
    r"(?P<number>(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?)\s*(?P<unit>[kmgt]?)(?P<binary>i?)(b|bytes?)?"
)
_POWERS = "kmgt"
_POLICY = {field.name for field in dataclasses.fields(CachePolicy)}


@dataclass(frozen=True, kw_only=True)
class ForecastOptions(CacheConfig):
    """Options of every method that forecasts.

    Args:
        order: order of the forecast, >= 0; 0 reuses the newest computed feature.
        coordinate: forecast along the step `index`, `sigma`, `timestep` or `log_snr`, the logarithm
            of picture by noise in the latents; `auto` is `log_snr` where the scheduler's noise
            levels are known and fall from call to call, else `index`.
        guidance: every guidance branch for itself (`independent`), the others `follow` the first,
            or they follow and forecast only the `difference` to it.
    """

    order: int = 1
    coordinate: Coordinate = "index"
    guidance: Guidance = "independent"

    def __post_init__(self) -> None:
        check_options(self)

    def cache_policy(self, gate: Gate, rules: StepRules, **own: Any) -> CachePolicy:
        """The policy of a gate, with the options that it has under the same name.

        Args:
            gate: decides.
            rules: asked before it.
            own: fields of the policy that are no option, or are named otherwise there.
        """
        shared = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name in _POLICY
        }
        if "memory_budget" in shared:
            shared["memory_budget"] = MemoryBudget.parse(shared["memory_budget"])
        return CachePolicy(**{"gate": gate, "rules": rules, **shared, **own})


@dataclass(frozen=True, kw_only=True)
class TargetOptions(ForecastOptions):
    """Options of a forecast whose target can be chosen.

    Args:
        target: forecast the `hidden` state after the last block, the `residual` since the gate's
            first blocks (over all blocks where it runs none), or the transformer's `output`: where
            no block has to run for the decision, nothing at all runs on a forecast step then.
        basis: `taylor`, `newton`, `hermite` or `exponential`; `auto` takes the one with the least
            error on the computed steps so far.
        correction: take out of the latents what the forecasts of a gap were wrong by, once the gap
            ends (`engine/correction.py`): `auto` where the scheduler allows it, `always`, `never`.
    """

    target: ForecastTarget = "hidden"
    basis: Basis = "taylor"
    correction: Correction = "never"


@dataclass(frozen=True, kw_only=True)
class DifferenceOptions:
    """How often the difference between guidance branches is computed.

    Args:
        guidance_interval: with `guidance="difference"`, computed steps of the first branch per
            computed step of the other branches, >= 1.
    """

    guidance_interval: int = 1


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """How much memory a cache may take.

    Args:
        memory_budget: bytes, or text like `2GB`, that the cache may take; None for no limit.
        on_budget: `refuse`, or `downgrade` to a forecast that takes less: of `last_block`, then of
            a lower order.
    """

    memory_budget: Bytes | None = None
    on_budget: OnBudget = "refuse"


def check_options(config: Any) -> None:
    """Check `order`, `warmup`, `final` and the like, where the config has them.

    Raises:
        ConfigError: a value is out of range.
    """
    interval = getattr(config, "interval", 1)
    require(interval >= 1, f"interval is {interval}; it must be 1 or more")
    order = getattr(config, "order", 0)
    require(order >= 0, f"order is {order}; it must be 0 (reuse) or more")
    require(
        order <= MOST_ORDER,
        f"order is {order}; beyond {MOST_ORDER} a forecast only amplifies noise",
    )
    warmup = getattr(config, "warmup", 1)
    require(
        warmup is None or warmup > 0, f"warmup is {warmup}; at least 1 step must be computed first"
    )
    final = getattr(config, "final", 0)
    require(final >= 0, f"final is {final}; it must be 0 or more")
    interval = getattr(config, "guidance_interval", 1)
    require(interval >= 1, f"guidance_interval is {interval}; it must be 1 or more")
    limit = getattr(config, "max_consecutive", None)
    require(limit is None or limit >= 1, f"max_consecutive is {limit}; it must be 1 or more")
    MemoryBudget.check(config)


def check_threshold(threshold: float) -> None:
    """A threshold is a relative L1 error: 0 skips nothing."""
    require(
        0.0 <= threshold < float("inf"),
        f"threshold is {threshold}; it must be 0 (exact) or a positive number",
    )


class MemoryBudget:
    """A number of bytes, or text such as `500MB` (10^6 bytes each) or `2 GiB` (2^30 each)."""

    @staticmethod
    def parse(value: Bytes | None) -> int | None:
        """Return bytes, or None for no limit.

        Raises:
            ConfigError: the text is not a size.
        """
        if value is None or isinstance(value, int):
            return value
        size = value if isinstance(value, float) else _bytes_of(value)
        require(
            size is not None and math.isfinite(size),
            f"memory_budget is {value!r}; write bytes or a size such as '2GB' or '500 MiB'",
        )
        assert size is not None
        return int(size)

    @staticmethod
    def check(config: Any) -> None:
        """Check `memory_budget`, where the config has one."""
        size = MemoryBudget.parse(getattr(config, "memory_budget", None))
        require(size is None or size > 0, f"memory_budget is {size}; it must be positive")


def _bytes_of(text: str) -> float | None:
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None or (match["binary"] and not match["unit"]):
        return None
    power = _POWERS.find(match["unit"]) + 1 if match["unit"] else 0
    return float(match["number"]) * float(1024 if match["binary"] else 1000) ** power
