"""Checks of options that several methods share."""

from __future__ import annotations

import re
from typing import Any

from ..config import choice, require
from .forecast import BASES

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def check_forecast(config: Any) -> None:
    """Check `order`, `warmup`, `final`, `basis`, `coordinate`, where the config has them."""
    order = getattr(config, "order", 0)
    require(order >= 0, f"order is {order}; it must be 0 (reuse) or more")
    require(order <= 6, f"order is {order}; beyond 6 a forecast only amplifies noise")
    warmup = getattr(config, "warmup", 1)
    require(warmup >= 1, f"warmup is {warmup}; at least 1 step must be computed first")
    final = getattr(config, "final", 0)
    require(final >= 0, f"final is {final}; it must be 0 or more")
    choice("basis", getattr(config, "basis", "taylor"), BASES)
    choice("coordinate", getattr(config, "coordinate", "index"), ("index", "sigma", "timestep"))
    choice("target", getattr(config, "target", "hidden"), ("hidden", "residual", "output"))
    choice(
        "guidance",
        getattr(config, "guidance", "independent"),
        ("independent", "follow", "difference"),
    )
    choice("correction", getattr(config, "correction", "never"), ("auto", "always", "never"))
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
    """A number of bytes, or text such as `500MB` or `2GB`."""

    @staticmethod
    def parse(value: int | str | None) -> int | None:
        """Return bytes, or None for no limit."""
        if value is None or isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([kmgt]?)b?\s*", value.lower())
        require(
            match is not None, f"memory_budget is {value!r}; write bytes or a size such as '2GB'"
        )
        assert match is not None
        return int(float(match.group(1)) * _UNITS[match.group(2)])

    @staticmethod
    def check(config: Any) -> None:
        """Check `memory_budget` and `on_budget`."""
        size = MemoryBudget.parse(config.memory_budget)
        require(size is None or size > 0, f"memory_budget is {size}; it must be positive")
        choice("on_budget", config.on_budget, ("refuse", "downgrade"))
