"""Checks of options that several methods share."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from ..config import require

Basis = Literal["taylor", "newton", "hermite", "exponential", "auto"]
Coordinate = Literal["index", "sigma", "timestep"]
ForecastTarget = Literal["hidden", "residual", "output"]
Guidance = Literal["independent", "follow", "difference"]
Correction = Literal["auto", "always", "never"]
Reduce = Literal["batch_mean", "worst_sample"]
OnBudget = Literal["refuse", "downgrade"]
# Bytes, or text such as `500MB` or `2 GiB`.
Bytes = int | float | str

_SIZE = re.compile(
    r"(?P<number>(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?)\s*(?P<unit>[kmgt]?)(?P<binary>i?)(b|bytes?)?"
)
_POWERS = "kmgt"


def check_forecast(config: Any) -> None:
    """Check `order`, `warmup`, `final` and the like, where the config has them."""
    order = getattr(config, "order", 0)
    require(order >= 0, f"order is {order}; it must be 0 (reuse) or more")
    require(order <= 6, f"order is {order}; beyond 6 a forecast only amplifies noise")
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
        """Check `memory_budget`."""
        size = MemoryBudget.parse(config.memory_budget)
        require(size is None or size > 0, f"memory_budget is {size}; it must be positive")


def _bytes_of(text: str) -> float | None:
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None or (match["binary"] and not match["unit"]):
        return None
    power = _POWERS.find(match["unit"]) + 1 if match["unit"] else 0
    return float(match["number"]) * float(1024 if match["binary"] else 1000) ** power
