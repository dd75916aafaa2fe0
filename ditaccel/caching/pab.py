"""Pyramid Attention Broadcast (arXiv 2408.12588): each kind of attention has its own interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..config import CacheConfig, Example, method, require
from ..core.denoising.tracker import DenoisingStep
from ..core.reasons import Reason
from .engine.gate import Gate, StepRules
from .engine.policy import CachePolicy
from .engine.state import BranchState, Verdict

# Timesteps of schedulers run from 1000 to 0; some families divide them by that, or reverse them.
_TRAIN_STEPS = 1000.0


def scheduled(step: DenoisingStep) -> float:
    """The timestep of a step as its scheduler counts it, from 1000 (noise) to 0.

    With flow matching it is the noise level, whatever a family hands to its transformer.
    """
    if step.sigma is not None and step.flow:
        return step.sigma * _TRAIN_STEPS
    return step.timestep * _TRAIN_STEPS if abs(step.timestep) <= 1.0 else step.timestep


@dataclass
class BroadcastGate(Gate):
    """Each kind of module rests between the steps that its own range divides.

    Args:
        ranges: kind -> broadcast range in steps.
        low: kinds rest at timesteps above this one,
        high: and below this one.
    """

    ranges: Mapping[str, int]
    low: float
    high: float
    module_kinds: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.module_kinds = tuple(self.ranges)

    def skips_nothing(self, total: int | None) -> bool:
        return max(self.ranges.values(), default=1) == 1

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        if not self.low < scheduled(step) < self.high:
            return Verdict(False, Reason.SCHEDULED, detail="outside the range of timesteps")
        rests = frozenset(kind for kind in self.ranges if self._rests(kind, step, state))
        if not rests:
            return Verdict(False, Reason.SCHEDULED)
        words = ", ".join(sorted(rests))
        return Verdict(True, Reason.BETWEEN, detail=f"{words} reused", kinds=rests)

    def _rests(self, kind: str, step: DenoisingStep, state: BranchState) -> bool:
        computed, interval = state.computed_at.get(kind), self.ranges[kind]
        if computed is None or step.index - computed >= interval:
            return False  # guidance has left this branch out for a while, or there is none of it
        return step.index % interval != 0


@method("pab", paper="2408.12588")
@dataclass(frozen=True, kw_only=True)
class PABConfig(CacheConfig):
    """Attention outputs are reused for some steps in the middle of the loop, by kind of attention.

    Differences between steps are largest in spatial attention, smaller in temporal and smallest in
    cross attention, so each kind has its own broadcast range: with a range of N its outputs are
    computed at steps that N divides, and reused at the others, where the scheduler's timestep lies
    between `low` and `high`; outside, all is computed. What is not attention runs on every step.

    Beyond the authors' code, guidance branches that are called one by one have outputs of their
    own. Their code also reuses MLP outputs of the first blocks at timesteps listed by hand; here
    `mlp` is a range like the others, and `published` leaves it off.

    Args:
        spatial: broadcast range of attention within frames, or of all latents' joint attention, in
            steps, >= 0; 1 is exact, 0 leaves this kind alone. Larger is faster and less exact.
        temporal: the same of attention across frames.
        cross: the same of attention to text.
        mlp: the same of MLPs.
        low: timestep (noise at 1000) at which reuse ends.
        high: timestep at which it begins.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "latte": {"spatial": 2, "temporal": 3, "cross": 6, "low": 100.0, "high": 800.0},
        "cogvideox": {"spatial": 2, "temporal": 0, "cross": 0, "low": 100.0, "high": 850.0},
        "allegro": {"spatial": 2, "temporal": 4, "cross": 6, "low": 100.0, "high": 850.0},
    }

    spatial: int = 2
    temporal: int = 4
    cross: int = 6
    mlp: int = 0
    low: float = 100.0
    high: float = 800.0

    def __post_init__(self) -> None:
        for kind, interval in self._ranges.items():
            require(interval >= 0, f"{kind} is {interval}; give 0 (left alone), 1 (exact) or more")
        require(any(self._ranges.values()), "no kind of module has a range; give spatial=2")
        require(self.low < self.high, f"low is {self.low} and high {self.high}; low is the smaller")

    @property
    def _ranges(self) -> dict[str, int]:
        kinds = ("spatial", "temporal", "cross", "mlp")
        return {kind: getattr(self, kind) for kind in kinds}

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        exact = cls(spatial=1, temporal=1, cross=1)
        return (Example(exact, cls(spatial=2, temporal=3, cross=4, low=-1e9, high=1e9)),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        ranges = {kind: interval for kind, interval in self._ranges.items() if interval}
        gate = BroadcastGate(ranges, self.low, self.high)
        return CachePolicy(gate=gate, rules=StepRules(warmup=1), order=0, granularity="module")
