"""First-block residual gate: the rule of FBCache (ParaAttention), as a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..config import Example, method
from .engine.gate import FirstBlockGate, StepRules
from .engine.options import ForecastOptions, Reduce, check_threshold
from .engine.policy import CachePolicy


@method("first_block_residual", paper="https://github.com/chengzeyi/ParaAttention")
@dataclass(frozen=True, kw_only=True)
class FirstBlockResidualConfig(ForecastOptions):
    """The first block always runs; if its residual has hardly changed, the rest is reused.

    Args:
        threshold: relative L1 between the first block's residual and that of the last computed
            step, >= 0, below which the remaining blocks are skipped; 0 is exact. 0.08 is the value
            that ParaAttention shows for FLUX.1-dev.
        order: order of the forecast of the remaining blocks' residual; 0 reuses it (published; its
            variant with TaylorSeer is order 1).
        warmup: first steps that are computed.
        final: last steps that are computed.
        reduce: `batch_mean` or `worst_sample`.
        max_consecutive: forecasts in a row at most; None for no limit (published).

    All other options are those of `ForecastOptions`; `guidance` is `independent` as published.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {"threshold": 0.08}}

    threshold: float = 0.08
    order: int = 0
    warmup: int = 1
    final: int = 0
    reduce: Reduce = "batch_mean"
    max_consecutive: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(threshold=0), cls(threshold=1e9)),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        return self.cache_policy(
            FirstBlockGate(self.threshold, self.reduce == "worst_sample"),
            StepRules(self.warmup, self.final, self.max_consecutive),
            target="residual",
            first_feature="residual",
        )
