"""TaylorSeer (arXiv 2503.06923): compute every Nth step, forecast between by a Taylor series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..config import Example, method, require
from .engine.gate import IntervalGate, StepRules
from .engine.options import BudgetOptions, DifferenceOptions, TargetOptions
from .engine.policy import CachePolicy


@method("taylorseer", paper="2503.06923")
@dataclass(frozen=True, kw_only=True)
class TaylorSeerConfig(BudgetOptions, DifferenceOptions, TargetOptions):
    """Compute every Nth step, and forecast those between by a Taylor series.

    Args:
        interval: distance of computed steps, N >= 1. Larger is faster and less exact; 1 is exact.
        warmup: first steps that are computed, >= 1.
        warmup_history: warm-up steps that a forecast may use: `all` (ours), or `last_two`, as in
            the authors' code; they differ at order 2 and up with a warm-up of 3 steps or more.
        final: last steps that are computed, >= 0 (the published schedule has none).
        granularity: `module` forecasts the attention and MLP outputs of every block, as published;
            `last_block` forecasts what leaves the last block, with memory constant in depth. A
            `target` besides `hidden`, and `guidance` besides `independent`, need `last_block`.

    All other options are those of `TargetOptions`, `DifferenceOptions` and `BudgetOptions`. As
    published: `coordinate="index"`, `basis="taylor"`, `guidance="independent"` and
    `correction="never"`.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "dit": {"interval": 4, "order": 4, "warmup": 2, "warmup_history": "last_two"},
        "flux": {"interval": 6, "order": 1, "warmup": 3, "warmup_history": "last_two"},
        "hunyuan_video": {"interval": 5, "order": 1, "warmup": 1, "warmup_history": "last_two"},
        "wan": {"interval": 5, "order": 1, "warmup": 1, "warmup_history": "last_two"},
    }

    interval: int = 4
    warmup: int = 1
    warmup_history: Literal["all", "last_two"] = "all"
    final: int = 0
    granularity: Literal["module", "last_block"] = "module"

    def __post_init__(self) -> None:
        super().__post_init__()
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
        last_two = self.warmup_history == "last_two"
        return self.cache_policy(
            IntervalGate(self.interval),
            StepRules(warmup=self.warmup, final=self.final),
            remembers_from=max(0, self.warmup - 2) if last_two else 0,
        )
