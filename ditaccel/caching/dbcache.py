"""DBCache (cache-dit): the first blocks decide, the last ones mend, those between are reused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..config import Example, method, require
from ..core.denoising.tracker import DenoisingStep
from ..core.reasons import Reason
from .engine.gate import COMPUTE_WARMUP, FirstBlockGate, StepRules, below
from .engine.options import ForecastOptions, check_threshold
from .engine.policy import CachePolicy
from .engine.state import BranchState, Verdict

# cache-dit takes a threshold of 1 and more for "always".
_ALWAYS = 1.0


@dataclass
class Counts:
    """What is remembered of a branch.

    Attributes:
        forecasts: so far.
        difference: sum of all differences that were compared.
    """

    forecasts: int = 0
    difference: float = 0.0


@dataclass
class DualBlockGate(FirstBlockGate):
    """How far did the residual of the first blocks move since the last computed step?"""

    warmup: int = 1
    warmup_interval: int = 1
    max_cached: int | None = None
    max_accumulated: float | None = None
    last_blocks: int = 0

    def memory(self) -> Counts:
        return Counts()

    def after_blocks(
        self, step: DenoisingStep, state: BranchState, before: torch.Tensor, after: torch.Tensor
    ) -> Verdict:
        counts = state.memory
        if step.index < self.warmup and step.index % self.warmup_interval == 0:
            return COMPUTE_WARMUP
        if self.max_cached is not None and counts.forecasts >= self.max_cached:
            return Verdict(False, Reason.SPENT, detail=f"{self.max_cached} steps were forecast")
        if self.max_accumulated is not None and counts.difference >= self.max_accumulated:
            return Verdict(False, Reason.SPENT, counts.difference, "differences have added up")
        if self.threshold >= _ALWAYS:
            return Verdict(True, Reason.BELOW_THRESHOLD)
        verdict = below(self.error(step, state, before, after), self.threshold)
        counts.difference += verdict.error or 0.0
        return verdict

    def finished(self, step: DenoisingStep, state: BranchState, verdict: Verdict) -> None:
        state.memory.forecasts += verdict.forecast


@method("dbcache", paper="https://github.com/vipshop/cache-dit")
@dataclass(frozen=True, kw_only=True)
class DBCacheConfig(ForecastOptions):
    """The first and the last blocks run on every step; what those between add is reused.

    Where the residual of the first blocks is close to that of the last computed step, what the
    blocks between added there is added again, to image and text, or forecast by a Taylor series.
    The last blocks then run on the result. Two lists of blocks (FLUX) are one list, as in
    cache-dit.

    Decisions and options are those of cache-dit 1.5.3, of which two things are left out: it takes
    no derivative before step 3, and tells guidance branches apart by counting calls.

    Args:
        threshold: relative L1 between the residual of the first blocks and that of the last
            computed step, below which the blocks between are skipped; 0 is exact, 1 and more skip
            wherever the other options allow it. Larger is faster.
        first_blocks: blocks that run and are compared, F >= 1. More decide better, and cost more.
        last_blocks: blocks that run on what was reused, B >= 0.
        order: order of the forecast; 0 reuses (cache-dit without a calibrator).
        warmup: first steps that are computed.
        warmup_interval: distance of computed steps among those, where others may be skipped.
        final: last steps that are computed (cache-dit has no such rule).
        max_cached: forecasts in one generation at most; None for no limit.
        max_consecutive: forecasts in a row at most; None for no limit.
        max_accumulated: sum of compared differences, from which on all steps are computed; None
            for no limit. It is never set back within a generation.

    All other options are those of `ForecastOptions`; as published, `guidance` is `independent`.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"threshold": 0.08, "first_blocks": 8, "last_blocks": 0, "warmup": 8},
    }

    threshold: float = 0.08
    first_blocks: int = 8
    last_blocks: int = 0
    order: int = 0
    warmup: int = 8
    warmup_interval: int = 1
    final: int = 0
    max_cached: int | None = None
    max_consecutive: int | None = None
    max_accumulated: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        require(self.first_blocks >= 1, f"first_blocks is {self.first_blocks}; give 1 or more")
        require(self.last_blocks >= 0, f"last_blocks is {self.last_blocks}; give 0 or more")
        require(
            self.warmup_interval >= 1,
            f"warmup_interval is {self.warmup_interval}; it must be 1 or more",
        )
        require(
            self.max_cached is None or self.max_cached >= 0,
            f"max_cached is {self.max_cached}; it must be 0 or more, or None",
        )
        require(
            self.guidance != "difference",
            "dbcache forecasts each branch from its own blocks; give guidance='independent' or "
            "'follow'",
        )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        exact = cls(threshold=0, first_blocks=1, warmup=1)
        skipping = cls(threshold=1e9, first_blocks=1, warmup=1)
        both = cls(threshold=0, first_blocks=1, last_blocks=1, warmup=1)
        skipping_both = cls(threshold=1e9, first_blocks=1, last_blocks=1, warmup=1)
        return (Example(exact, skipping), Example(both, skipping_both, variant="last blocks"))

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        gate = DualBlockGate(
            self.threshold,
            first_blocks=self.first_blocks,
            warmup=self.warmup,
            warmup_interval=self.warmup_interval,
            max_cached=self.max_cached,
            max_accumulated=self.max_accumulated,
            last_blocks=self.last_blocks,
        )
        warmup = self.warmup if self.warmup_interval == 1 else 1
        rules = StepRules(warmup, self.final, self.max_consecutive)
        return self.cache_policy(gate, rules, target="residual", first_feature="residual")
