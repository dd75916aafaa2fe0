"""FORA (arXiv 2407.01425): the outputs of attention and MLP are computed every Nth step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..config import CacheConfig, Example, method
from ..core.denoising.tracker import DenoisingStep
from ..core.reasons import Reason
from .engine.gate import IntervalGate, StepRules
from .engine.options import check_options
from .engine.policy import CachePolicy
from .engine.state import BranchState, Verdict


@dataclass
class CountdownGate(IntervalGate):
    """Every `interval`-th step, counted back from the last one."""

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        # a loop of unknown length can only be counted from its beginning
        left = step.index if step.total is None else step.total - 1 - step.index
        if left % self.interval == 0:
            return Verdict(False, Reason.SCHEDULED, detail=f"every {self.interval} steps")
        return super().before(step, state)  # guidance may have left this branch out for a while


@method("fora", paper="2407.01425")
@dataclass(frozen=True, kw_only=True)
class FORAConfig(CacheConfig):
    """Compute attention and MLP outputs every Nth step, and reuse them in between.

    As in the authors' code, steps are counted back from the last one, which is computed, and so is
    the first one: of 10 steps at an interval of 4, steps 0, 1, 5 and 9. Norms, gates and the
    modulation by the timestep run on every step. Beyond the paper, guidance branches that are
    called one by one each have outputs of their own (the authors' DiT has both in one call).

    Args:
        interval: distance of computed steps, N >= 1. Larger is faster and less exact; 1 is exact.
            Published comparisons print 3 (moderate) and 7 (fast).
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {"interval": 3}}

    interval: int = 3

    def __post_init__(self) -> None:
        check_options(self)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(interval=1), cls(interval=3)),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        gate = CountdownGate(self.interval)
        return CachePolicy(gate=gate, rules=StepRules(warmup=1), order=0, granularity="module")
