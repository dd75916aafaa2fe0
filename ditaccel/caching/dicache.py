"""DiCache (arXiv 2508.17356): the first blocks probe each step, and align what is reused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from ..config import CacheConfig, Example, method, require
from ..core.denoising.tracker import DenoisingStep
from .engine.gate import FirstBlockGate, StepRules, below
from .engine.options import check_threshold
from .engine.policy import CachePolicy
from .engine.state import BranchState, Call, Verdict
from .engine.targets import ResidualTarget, target

Change = Literal["probe", "difference"]


@dataclass
class Probe:
    """What is remembered of a branch: the last step's probe, and what has added up since.

    Attributes:
        entered: hidden state in front of the first block on the last step.
        left: the same behind the probe.
        error: changes since the last computed step.
    """

    entered: torch.Tensor | None = None
    left: torch.Tensor | None = None
    error: torch.Tensor | float = 0.0


@dataclass
class ProbeGate(FirstBlockGate):
    """Adds up how far the probe moves from step to step."""

    change: Change = "probe"

    def memory(self) -> Probe:
        return Probe()

    def after_blocks(
        self, step: DenoisingStep, state: BranchState, before: torch.Tensor, after: torch.Tensor
    ) -> Verdict:
        state.memory.error = state.memory.error + self.error(step, state, before, after)
        return below(state.memory.error, self.threshold)

    def error(
        self, step: DenoisingStep, state: BranchState, before: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        memory = state.memory
        moved = self.compared(state, after, memory.left)
        if self.change == "probe":
            return moved
        return (moved - self.compared(state, before, memory.entered)).abs()

    def finished(self, step: DenoisingStep, state: BranchState, verdict: Verdict) -> None:
        memory = state.memory
        if state.probed is not None:
            before, after = state.probed
            memory.left = after.detach().clone()
            if self.change == "difference":
                memory.entered = before.detach().clone()
        if not verdict.forecast:
            memory.error = 0.0


@target("aligned_residual")
class AlignedResidualTarget(ResidualTarget):
    """What all blocks add, between its two newest values, as far along as the probe shows."""

    def feature(self, call: Call, hidden: torch.Tensor) -> torch.Tensor:
        return super().feature(call, hidden) + self._probe(call, hidden.shape)

    def whole(self, call: Call, feature: torch.Tensor, shape: torch.Size | None) -> torch.Tensor:
        return super().whole(call, feature - self._probe(call, feature.shape), shape)

    def _probe(self, call: Call, shape: torch.Size) -> torch.Tensor:
        """What the first blocks have added on this call."""
        assert call.state.probed is not None
        before, after = call.state.probed
        return self._in_last(after - before, shape)

    def predict(self, call: Call) -> torch.Tensor:
        state = call.state
        history, probes = state.last.features, state.first.features
        if len(history) < 2 or len(probes) < 2:
            return history[0]
        assert state.probed is not None
        before, after = state.probed
        far = torch.stack(
            [
                (probe - probes[1]).abs().sum(dtype=torch.float32)
                for probe in (after - before, probes[0])
            ]
        )
        if state.ranks is not None:
            far = state.ranks.total(far)
        along = (far[0] / far[1].clamp_min(1e-12)).clamp(1.0, 1.5)
        newest, older = (feature.float() for feature in history)
        return (older + along * (newest - older)).to(history[0].dtype)


class Retention(StepRules):
    """The first step, and a share of the loop rounded down."""

    def first(self, total: int | None) -> int:
        return self.warmup if total is None else int(self.warmup_share * total) + 1


@method("dicache", paper="2508.17356")
@dataclass(frozen=True, kw_only=True)
class DiCacheConfig(CacheConfig):
    """The first blocks run on every step; what the others add is reused until those have moved.

    The change of the first blocks' output from step to step is added up since the last computed
    step; while it stays below `threshold`, the other blocks are skipped. What all blocks add to
    their input, `r`, is then taken from the two newest computed steps, `r2 + g (r1 - r2)`, where
    `g`, between 1 and 1.5, is how far the first blocks' own addition has come from the second
    newest to the newest step. Where a step is computed after all, it goes on from the first blocks.

    As in the authors' code for FLUX, but that nothing outlives a generation, each guidance branch
    is for itself, and of two streams (video and sound) the one that moved more decides.

    Args:
        threshold: sum of relative L1 changes since the last computed step, >= 0; 0 is exact.
            Larger is faster.
        blocks: first blocks that probe, 1 to 5 as the authors advise.
        change: what is added up: the change of the `probe`, or its `difference` to that of the
            first block's input (then the authors have `threshold=0.08` and `retention=0`).
        retention: share of the loop in which all steps are computed, besides the first one.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "flux": {"threshold": 0.4, "blocks": 1, "change": "probe", "retention": 0.2},
    }

    threshold: float = 0.4
    blocks: int = 1
    change: Change = "probe"
    retention: float = 0.2

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        require(self.blocks >= 1, f"blocks is {self.blocks}; at least 1 must probe")
        require(0.0 <= self.retention < 1.0, f"retention is {self.retention}; give 0 to below 1")

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(threshold=0), cls(threshold=1e9)),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        return CachePolicy(
            gate=ProbeGate(self.threshold, first_blocks=self.blocks, change=self.change),
            rules=Retention(warmup=1, final=1, warmup_share=self.retention),
            target="aligned_residual",
            order=1,
            first_feature="residual",
            first_order=1,
        )
