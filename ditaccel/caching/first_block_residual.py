"""First-block residual gate: the rule of FBCache (ParaAttention), as a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..config import CacheConfig, Example, method
from .gate import FirstBlockResidualGate, StepRules
from .options import Coordinate, Guidance, Reduce, check_forecast, check_threshold
from .policy import CachePolicy


@method("first_block_residual")
@dataclass(frozen=True)
class FirstBlockResidualConfig(CacheConfig):
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
        coordinate: forecast along the step `index`, `sigma` or `timestep`.
        guidance: `independent` (published), `follow` or `difference` (ours).
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {"threshold": 0.08}}

    threshold: float = 0.08
    order: int = 0
    warmup: int = 1
    final: int = 0
    reduce: Reduce = "batch_mean"
    max_consecutive: int | None = None
    coordinate: Coordinate = "index"
    guidance: Guidance = "independent"

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        check_forecast(self)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(threshold=0), cls(threshold=1e9)),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        return CachePolicy(
            gate=FirstBlockResidualGate(self.threshold, self.reduce == "worst_sample"),
            rules=StepRules(self.warmup, self.final, self.max_consecutive),
            order=self.order,
            coordinate=self.coordinate,
            target="residual",
            first_feature="residual",
            guidance=self.guidance,
        )
