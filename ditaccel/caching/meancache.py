"""MeanCache (arXiv 2601.19961): skipped steps get an average velocity instead of the last one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ..config import CacheConfig, Example, method, require
from ..core.denoising.schedule import Known
from ..core.denoising.tracker import DenoisingStep
from ..core.reasons import Reason
from ..errors import ConfigError
from .engine.forecast import combine
from .engine.gate import Gate, StepRules
from .engine.policy import CachePolicy
from .engine.state import BranchState, Call, Verdict
from .engine.targets import OutputTarget, target

MAX_SPAN = 6

_NO_WIDTH = {
    Known.NO_SCHEDULER: "no scheduler is in sight",
    Known.NOT_SET: "the scheduler in sight is not in use (set_timesteps was not called)",
    Known.OTHER: "this loop runs at other timesteps than its scheduler's",
    Known.FOLLOWED: "this scheduler has none, or takes its steps in stages (Heun)",
}


@dataclass
class Past:
    """The newest outputs of a branch, computed or not, newest first.

    Attributes:
        most: outputs that are kept: as many as the longest span takes.
        outputs: `(B, …)` each.
        widths: change of the noise level that each step makes.
    """

    most: int = MAX_SPAN
    outputs: list[torch.Tensor] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)

    def add(self, output: torch.Tensor, step: DenoisingStep) -> None:
        """Take up the output of a step."""
        assert step.sigma is not None and step.sigma_next is not None
        self.outputs.insert(0, output)
        self.widths.insert(0, step.sigma_next - step.sigma)
        del self.outputs[self.most :], self.widths[self.most :]

    def weights(self, width: float, span: int) -> list[float]:
        """Weights of the outputs in that of a step that follows them.

        Args:
            width: change of the noise level that the step makes.
            span: steps that the mean is taken over.
        """
        span = min(span, len(self.outputs))
        total = sum(self.widths[:span])
        # v_last - (v_first - mean) / total * width
        weights = [part / total * width / total for part in self.widths[:span]]
        weights[0] += 1.0
        weights[-1] -= width / total
        return weights + [0.0] * (len(self.outputs) - span)


@target("mean_velocity")
class MeanVelocityTarget(OutputTarget):
    """The transformer's output, carried on by how it differed from its mean."""

    def remember(self, call: Call, feature: torch.Tensor) -> torch.Tensor:
        kept = super().remember(call, feature)
        call.state.memory.add(kept, call.step)
        return kept

    def predict(self, call: Call) -> torch.Tensor:
        step, past = call.step, call.state.memory
        assert step.sigma is not None and step.sigma_next is not None
        span = call.verdict.span if isinstance(call.verdict, Skipped) else 1
        weights = past.weights(step.sigma_next - step.sigma, span)
        output = combine(past.outputs, weights)
        past.add(output, step)
        return output


@dataclass(frozen=True)
class Skipped(Verdict):
    """A step that is not computed.

    Attributes:
        span: steps that its mean velocity is taken over.
    """

    span: int = 1


@dataclass
class EdgesGate(Gate):
    """A list of computed steps, and for each gap between two of them the span of its mean.

    Args:
        steps: computed ones, in their order.
        spans: one number for each but the last.
        total: steps of the loop that they were made for, None for any.
    """

    steps: tuple[int, ...]
    spans: tuple[int, ...]
    total: int | None = None
    by_place = True

    def memory(self) -> Past:
        return Past(max(self.spans, default=1))

    @property
    def made_for(self) -> int | None:  # type: ignore[override]
        return self.total

    def check(self, step: DenoisingStep) -> None:
        if self.total is not None and step.total is not None and step.total != self.total:
            raise ConfigError(
                f"the schedule was made for {self.total} steps, this run has {step.total}; call "
                f"the pipeline with num_inference_steps={self.total}"
            )
        if step.sigma is None or step.sigma_next is None:
            raise ConfigError(
                f"meancache averages over noise levels, and {_NO_WIDTH[step.known]}; use another "
                "caching method"
            )

    def skips_nothing(self, total: int | None) -> bool:
        return total is not None and set(self.steps).issuperset(range(total))

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        if step.index in self.steps:
            return Verdict(False, Reason.IN_MASK)
        edge = sum(computed < step.index for computed in self.steps) - 1
        span = self.spans[edge] if edge < len(self.spans) else 1
        detail = f"mean over {span} steps" if span > 1 else ""
        return Skipped(True, Reason.NOT_IN_MASK, detail=detail, span=span)


@method("meancache", paper="2601.19961")
@dataclass(frozen=True, kw_only=True)
class MeanCacheConfig(CacheConfig):
    """Named steps are computed; in a gap, outputs move on as they differed from their mean.

    A skipped step takes the output before it, `v`, minus `(v_first - mean) / s * w`: `mean` is the
    mean velocity of the last K steps, `v_first` the output of the first of them, `s` and `w` are
    the changes of the noise level over them and over the step itself. K, the span, is part of the
    schedule and belongs to the gap; with 1 the last output is reused. Outputs that were not
    computed count among the K steps like others, as in the authors' code.

    Two things differ from that code, and neither changes a number with flow-matching Euler and
    linear guidance. The mean is taken from the outputs, weighted with their steps' changes of the
    noise level, and not from the latents: under multistep schedulers (UniPC, DPM-Solver++) the
    latents' mean is not that of the outputs. And each guidance branch is continued for itself,
    where the authors continue the guided output; all is linear, so that the guided output comes out
    the same where its guidance is linear too (Qwen-Image rescales it, which is not).

    Args:
        steps: indices of the computed steps, counted from 0; must hold 0.
        spans: K of the gap behind each computed step but the last, 1 to 6; 1 where none are given.
        total: steps of the loop that the schedule was made for; None for any.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "qwen_image": {
            "steps": (*range(17), 24, 32, 40, 43, 45, 47, 48, 49),
            "spans": (*[1] * 19, 5, 5, 5, 1, 1),
            "total": 50,
        },
    }

    steps: tuple[int, ...] = (0,)
    spans: tuple[int, ...] = ()
    total: int | None = None

    def __post_init__(self) -> None:
        require(
            all(step >= 0 for step in self.steps) and 0 in self.steps,
            f"steps is {self.steps}; it must be step indices that include 0",
        )
        ordered = list(self.steps) == sorted(set(self.steps))
        require(ordered, f"steps is {self.steps}; give each step once, in rising order")
        beyond = [s for s in self.steps if self.total is not None and s >= self.total]
        require(not beyond, f"steps holds {beyond}, but total is {self.total}")
        require(
            len(self.spans) in (0, len(self.steps) - 1),
            f"spans has {len(self.spans)} numbers for {len(self.steps)} steps; give one for each "
            "step but the last",
        )
        require(
            all(1 <= span <= MAX_SPAN for span in self.spans),
            f"spans is {self.spans}; each must be from 1 to {MAX_SPAN}",
        )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(steps=tuple(range(20))), cls(steps=(0, 1, 3), spans=(1, 2))),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        gate = EdgesGate(self.steps, self.spans, self.total)
        return CachePolicy(gate=gate, rules=StepRules(exact=True), target="mean_velocity", order=0)
