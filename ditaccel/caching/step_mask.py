"""Explicit step mask: the computed steps are named, all others are forecast, as a baseline."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import Example, method, require
from ..core.denoising.tracker import DenoisingStep
from ..core.reasons import Reason
from ..errors import ConfigError
from .engine.gate import Gate, StepRules
from .engine.options import DifferenceOptions, ForecastTarget, TargetOptions
from .engine.policy import CachePolicy
from .engine.state import BranchState, Verdict


@dataclass
class MaskGate(Gate):
    """An explicit list of computed steps."""

    steps: frozenset[int]
    total: int | None = None

    def check(self, step: DenoisingStep) -> None:
        if self.total is not None and step.total is not None and step.total != self.total:
            raise ConfigError(
                f"the step mask was made for {self.total} steps, this run has {step.total}; "
                f"call the pipeline with num_inference_steps={self.total}"
            )

    def skips_nothing(self, total: int | None) -> bool:
        return total is not None and self.steps.issuperset(range(total))

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        if step.index in self.steps:
            return Verdict(False, Reason.IN_MASK)
        return Verdict(True, Reason.NOT_IN_MASK)


@method("step_mask", baseline=True)
@dataclass(frozen=True, kw_only=True)
class StepMaskConfig(DifferenceOptions, TargetOptions):
    """Compute the steps that are named, and forecast all others: a fixed budget.

    Args:
        steps: indices of the computed steps, counted from 0; must hold 0.
        total: steps of the loop that the mask was made for; None for any. Another number is an
            error when the pipeline is called.
        guidance_steps: with `guidance="difference"`, computed steps of the other branches (of those
            in `steps`), instead of `guidance_interval`.

    All other options are those of `TargetOptions` and `DifferenceOptions`.
    """

    steps: tuple[int, ...] = (0,)
    total: int | None = None
    target: ForecastTarget = "output"
    guidance_steps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            all(isinstance(s, int) and s >= 0 for s in self.steps) and 0 in self.steps,
            f"steps is {self.steps}; it must be step indices that include 0",
        )
        beyond = [s for s in self.steps if self.total is not None and s >= self.total]
        require(not beyond, f"steps holds {beyond}, but total is {self.total}")
        stray = sorted(set(self.guidance_steps or ()) - set(self.steps))
        require(not stray, f"guidance_steps holds {stray}, which are not in steps")
        require(
            self.guidance_steps is None or self.guidance == "difference",
            "guidance_steps needs guidance='difference'",
        )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(steps=tuple(range(20))), cls(steps=(0, 2))),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        others = None if self.guidance_steps is None else frozenset(self.guidance_steps)
        gate = MaskGate(frozenset(self.steps), self.total)
        return self.cache_policy(gate, StepRules(warmup=1), guidance_steps=others)
