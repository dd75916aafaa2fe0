"""In the manner of RACER (arXiv 2608.01740): two forecasts that disagree are trusted less."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..config import CacheConfig, Example, method, require
from ..core.denoising.tracker import DenoisingStep
from ..core.reasons import Reason
from .engine.forecast import combine, newton_weights
from .engine.gate import Gate, StepRules
from .engine.policy import CachePolicy
from .engine.state import BranchState, Call, Verdict
from .engine.targets import Target, target

# Newest computed features that the base forecast is fitted to (Spectrum's code).
_KEPT = 10
# One token in so many is looked at: the disagreement is a mean, which few of them give well.
_SAMPLE = 16
# A quantile of fewer disagreements says nothing.
_LEAST = 3
# How fast trust falls with the horizon and with disagreement: a third party's figures, not
# compared with the paper.
_DECAY, _SHARPNESS = 0.3, 4.0
# Length of the loop that Spectrum's code assumes, whatever it is.
_ASSUMED = 50


def chebyshev_weights(
    places: Sequence[float], to: float, degree: int, ridge: float, total: int
) -> list[float]:
    """Weights over features of a ridge regression on Chebyshev polynomials (Spectrum, 2603.01623).

    Args:
        places: steps of the features.
        to: step that is forecast.
        degree: of the highest polynomial.
        ridge: added to the diagonal of the normal equations.
        total: steps of the loop; polynomials run from -1 at its beginning to 1 at its end.
    """

    def row(place: float) -> list[float]:
        x = 2.0 * place / total - 1.0
        values = [1.0, x]
        for _ in range(2, degree + 1):
            values.append(2.0 * x * values[-1] - values[-2])
        return values[: degree + 1]

    design = torch.tensor([row(place) for place in places], dtype=torch.float64)
    normal = design.T @ design + ridge * torch.eye(degree + 1, dtype=torch.float64)
    wanted = torch.tensor(row(to), dtype=torch.float64)
    found: list[float] = (design @ torch.linalg.solve(normal, wanted)).tolist()
    return found


def windows(total: int, warmup: int, window: float, growth: float) -> list[int]:
    """Spectrum's computed steps: the first ones, then one per window, which grows at each."""
    computed, last = list(range(min(warmup, total))), warmup - 1
    for index in range(warmup, total):
        if index - last >= math.floor(window):
            computed.append(index)
            last, window = index, window + growth
    return computed


def repaid(index: int, scheduled: Sequence[int]) -> int | None:
    """The scheduled step that need not be computed once `index` is: it leaves the shortest gap.

    The last one is never given up; None where there is no other.
    """
    ends = [index, *scheduled]
    gaps = [(ends[i + 1] - ends[i - 1], ends[i]) for i in range(1, len(ends) - 1)]
    return min(gaps)[1] if gaps else None


@dataclass
class Trust:
    """What is remembered of a branch.

    Attributes:
        scheduled: steps that are still to be computed, None before the warm-up has ended.
        seen: disagreements so far.
        weights: of the features, for the step that is about to be forecast.
    """

    scheduled: list[int] | None = None
    seen: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


@target("trusted_hidden")
class TrustedTarget(Target):
    """The hidden state, forecast as the gate has weighted it."""

    def predict(self, call: Call) -> torch.Tensor:
        return combine(call.state.last.features, call.state.memory.weights)


@dataclass
class DisagreementGate(Gate):
    """Computes where two forecasts disagree most, and skips a later step for it."""

    warmup: int
    window: float
    growth: float
    degree: int
    ridge: float
    tolerated: float
    risk: float

    def memory(self) -> Trust:
        return Trust()

    def skips_nothing(self, total: int | None) -> bool:
        return self.window < 2.0 and self.growth == 0.0

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        trust, total = state.memory, step.total or max(_ASSUMED, step.index + 1)
        if trust.scheduled is None or step.total is None:
            planned = windows(total, self.warmup, self.window, self.growth)
            trust.scheduled = [index for index in planned if index >= step.index]
        if trust.scheduled[:1] == [step.index]:
            del trust.scheduled[0]
            return Verdict(False, Reason.SCHEDULED)
        base, local = self._forecasts(step, state, total)
        doubt = disagreement(state, base, local)
        if not math.isfinite(doubt):
            return Verdict(False, Reason.NON_FINITE, doubt)
        later = repaid(step.index, trust.scheduled) if step.total is not None else None
        risky = len(trust.seen) >= _LEAST and doubt > np.quantile(trust.seen, self.risk)
        trust.seen.append(doubt)
        if risky and later is not None:
            trust.scheduled.remove(later)
            return Verdict(False, Reason.ABOVE_THRESHOLD, doubt, f"risky, for step {later}")
        trusted = self.trusted(step.index - state.last_index, doubt)
        trust.weights = [trusted * weight for weight in base]
        trust.weights[0] += 1.0 - trusted
        return Verdict(True, Reason.BELOW_THRESHOLD, doubt, f"trusted {trusted:.2f}")

    def _forecasts(
        self, step: DenoisingStep, state: BranchState, total: int
    ) -> tuple[list[float], list[float]]:
        """Weights of the base forecast and of the observer."""
        places, at = state.last.places, state.place(step)
        base = chebyshev_weights(places, at, self.degree, self.ridge, total)
        return base, newton_weights(places, at, 1)

    def trusted(self, horizon: int, doubt: float) -> float:
        """Share of the base forecast against the newest computed feature.

        Args:
            horizon: steps since that one.
            doubt: disagreement of the two forecasts.
        """
        near = math.exp(-_DECAY * max(horizon - 1, 0))
        return near / (1.0 + math.exp(-_SHARPNESS * (self.tolerated - doubt)))


def disagreement(state: BranchState, base: Sequence[float], local: Sequence[float]) -> float:
    """Relative L2 distance of two forecasts on a sample of tokens."""
    sample = [feature[:, ::_SAMPLE].float() for feature in state.last.features]
    forecast, other = combine(sample, base), combine(sample, local)
    sums = torch.stack([(forecast - other).square().sum(), forecast.square().sum()])
    if state.ranks is not None:
        sums = state.ranks.total(sums)
    return float((sums[0] / sums[1].clamp_min(1e-24)).sqrt())


@method("racer", paper="2608.01740")
@dataclass(frozen=True, kw_only=True)
class RACERConfig(CacheConfig):
    """A forecast is trusted less the more a second one disagrees; the riskiest steps are computed.

    In the manner of the paper, whose code could not be read. The base forecast is Spectrum's
    (arXiv 2603.01623): a ridge regression of the newest ten computed features on Chebyshev
    polynomials. A straight line through the newest two observes it; their relative distance `r` on
    one token in 16 says how far to trust the base, `k`, and the step gets `a + k (base - a)` with
    the newest computed feature `a`. A step whose `r` is above a quantile of those before is
    computed, and a later scheduled step is not, so that as many steps are computed as scheduled:
    the one that leaves the shortest gap, and never the last.

    Not checked against the paper: `k = exp(-0.3 (h - 1)) / (1 + exp(-4 (tolerated - r)))` at `h`
    steps from the newest computed one, with `tolerated` between 0.15 and 0.4, is a third party's;
    the quantile, the sample and the choice of the step that is given up are ours. Spectrum's own
    polynomials always run over 50 steps; here they run over the loop.

    Args:
        window: distance of computed steps after the warm-up, rounded down; below 2, and without
            growth, it is exact. Larger is faster.
        growth: added to it at each computed step.
        warmup: first steps that are computed.
        degree: of the highest polynomial.
        ridge: of the regression.
        tolerated: disagreement at which half of the trust is lost.
        risk: quantile of the disagreements so far above which a step is computed; 1 for none but
            new records.
    """

    window: float = 2.0
    growth: float = 0.25
    warmup: int = 7
    degree: int = 4
    ridge: float = 1e-3
    tolerated: float = 0.25
    risk: float = 0.9

    def __post_init__(self) -> None:
        require(self.window >= 1.0, f"window is {self.window}; it must be 1 or more")
        require(self.growth >= 0.0, f"growth is {self.growth}; it must be 0 or more")
        require(self.warmup >= 2, f"warmup is {self.warmup}; two forecasts need 2 computed steps")
        require(1 <= self.degree < _KEPT, f"degree is {self.degree}; give 1 to {_KEPT - 1}")
        require(self.ridge > 0.0, f"ridge is {self.ridge}; it must be positive")
        require(0.0 <= self.risk <= 1.0, f"risk is {self.risk}; it is a quantile, from 0 to 1")

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(window=1, growth=0, warmup=2), cls(window=3, growth=1, warmup=2)),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        gate = DisagreementGate(
            self.warmup,
            self.window,
            self.growth,
            self.degree,
            self.ridge,
            self.tolerated,
            self.risk,
        )
        return CachePolicy(
            gate=gate,
            rules=StepRules(warmup=self.warmup, needed=2, exact=True),
            target="trusted_hidden",
            order=_KEPT - 1,
        )
