"""Plain reuse: compute every Nth step and hold what left the last block, as a baseline."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import CacheConfig, Example, method
from .engine.gate import IntervalGate, StepRules
from .engine.options import ForecastTarget, check_options
from .engine.policy import CachePolicy


@method("reuse", baseline=True)
@dataclass(frozen=True, kw_only=True)
class ReuseConfig(CacheConfig):
    """Compute every Nth step, and hold what left the last block.

    Args:
        interval: distance of computed steps, >= 1; 1 is exact.
        warmup: first steps that are computed.
        final: last steps that are computed.
        target: hold the `hidden` state, the `residual` over all blocks, or the transformer's
            `output`.
    """

    interval: int = 2
    warmup: int = 1
    final: int = 0
    target: ForecastTarget = "hidden"

    def __post_init__(self) -> None:
        check_options(self)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(interval=1), cls(interval=2)),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        return CachePolicy(
            gate=IntervalGate(self.interval),
            rules=StepRules(warmup=self.warmup, final=self.final),
            order=0,
            target=self.target,
        )
