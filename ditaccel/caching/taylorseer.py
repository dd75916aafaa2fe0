"""TaylorSeer (arXiv 2503.06923): compute every Nth step, forecast between by a Taylor series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..config import CacheConfig, Example, method, require
from .gate import IntervalGate, StepRules
from .options import (
    Basis,
    Bytes,
    Coordinate,
    Correction,
    ForecastTarget,
    Guidance,
    MemoryBudget,
    OnBudget,
    check_forecast,
)
from .policy import CachePolicy


@method("taylorseer", paper="2503.06923")
@dataclass(frozen=True)
class TaylorSeerConfig(CacheConfig):
    """Fixed interval with a Taylor forecast.

    Args:
        interval: distance of computed steps, N >= 1. Larger is faster and less exact; 1 is exact.
        order: order of the forecast, >= 0; 0 reuses the last computed feature.
        warmup: first steps that are computed, >= 1.
        warmup_history: warm-up steps that a forecast may use: `all` (ours), or `last_two`, as in
            the authors' code; they differ at order 2 and up with a warm-up of 3 steps or more.
        final: last steps that are computed, >= 0 (the published schedule has none).
        granularity: `module` forecasts the attention and MLP outputs of every block, as published;
            `last_block` forecasts what leaves the last block, with memory constant in depth.
        coordinate: forecast along the step `index` (published), `sigma` or `timestep`.
        target: at `last_block`, forecast the `hidden` state, the `residual` over all blocks, or the
            transformer's `output`.
        basis: `taylor` (published), `newton`, `hermite`, `exponential` or `auto`.
        guidance: every branch for itself (`independent`, published), or the others forecast only
            their `difference` to the first (ours); needs `last_block`.
        guidance_interval: with `difference`, computed steps of the first branch per computed step
            of the other branches.
        correction: make good in the latents what the forecasts of a gap were wrong by, once the
            gap ends (`correction.py`, ours): `auto` where the scheduler allows it, `always`,
            `never` (published).
        memory_budget: bytes, or text like `2GB`, that the cache may take; None for no limit.
        on_budget: `refuse`, or `downgrade` to `last_block` and then to a lower order.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "dit": {"interval": 4, "order": 4, "warmup": 2, "warmup_history": "last_two"},
        "flux": {"interval": 6, "order": 1, "warmup": 3, "warmup_history": "last_two"},
        "hunyuan_video": {"interval": 5, "order": 1, "warmup": 1, "warmup_history": "last_two"},
        "wan": {"interval": 5, "order": 1, "warmup": 1, "warmup_history": "last_two"},
    }

    interval: int = 4
    order: int = 1
    warmup: int = 1
    warmup_history: Literal["all", "last_two"] = "all"
    final: int = 0
    granularity: Literal["module", "last_block"] = "module"
    coordinate: Coordinate = "index"
    target: ForecastTarget = "hidden"
    basis: Basis = "taylor"
    guidance: Guidance = "independent"
    guidance_interval: int = 1
    correction: Correction = "never"
    memory_budget: Bytes | None = None
    on_budget: OnBudget = "refuse"

    def __post_init__(self) -> None:
        require(self.interval >= 1, f"interval is {self.interval}; it must be 1 or more")
        check_forecast(self)
        by_module = self.granularity == "module"
        require(
            not (by_module and self.basis == "auto"),
            "basis='auto' needs granularity='last_block'",
        )
        require(
            not (by_module and self.guidance != "independent"),
            f"guidance={self.guidance!r} needs granularity='last_block'",
        )
        require(
            not (by_module and self.target != "hidden"),
            f"target={self.target!r} needs granularity='last_block'",
        )
        MemoryBudget.check(self)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (
            Example(cls(interval=1), cls(interval=3)),
            Example(
                cls(interval=1, granularity="last_block"),
                cls(interval=3, granularity="last_block"),
                variant="last_block",
            ),
        )

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        return CachePolicy(
            gate=IntervalGate(self.interval),
            rules=StepRules(warmup=self.warmup, final=self.final),
            order=self.order,
            remembers_from=max(0, self.warmup - 2) if self.warmup_history == "last_two" else 0,
            basis=self.basis,
            coordinate=self.coordinate,
            target=self.target,
            granularity=self.granularity,
            guidance=self.guidance,
            guidance_interval=self.guidance_interval,
            correction=self.correction,
            memory_budget=MemoryBudget.parse(self.memory_budget),
            on_budget=self.on_budget,
        )
