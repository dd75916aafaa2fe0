"""A caching method: compute every step whose number is a multiple of `every`."""

from dataclasses import dataclass

from ditaccel.caching.engine.gate import Gate, StepRules
from ditaccel.caching.engine.policy import CachePolicy
from ditaccel.caching.engine.state import Verdict
from ditaccel.config import CacheConfig, Example, method, require
from ditaccel.core.reasons import Reason


class MultiplesGate(Gate):
    """Looks at nothing but the number of the step."""

    def __init__(self, every):
        self.every = every

    def skips_nothing(self, total):
        return self.every == 1

    def before(self, step, state):
        forecast = step.index % self.every != 0
        return Verdict(forecast, Reason.BETWEEN if forecast else Reason.SCHEDULED)


@method("multiples")
@dataclass(frozen=True, kw_only=True)
class MultiplesConfig(CacheConfig):
    """Compute the multiples.

    Args:
        every: distance of computed steps, >= 1; 1 is exact.
    """

    every: int = 2

    def __post_init__(self):
        require(self.every >= 1, f"every is {self.every}; it must be 1 or more")

    @classmethod
    def examples(cls):
        return (Example(cls(every=1), cls(every=2)),)

    def policy(self):
        return CachePolicy(gate=MultiplesGate(self.every), rules=StepRules(warmup=1), order=0)
