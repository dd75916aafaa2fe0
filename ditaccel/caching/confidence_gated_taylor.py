"""Confidence-gated Taylor (arXiv 2508.02240): forecast when the first block's forecast holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from ..config import Example, method, require
from ..core.denoising.tracker import DenoisingStep
from .engine.gate import FirstBlockGate, StepRules
from .engine.options import BudgetOptions, Reduce, TargetOptions, check_threshold
from .engine.policy import CachePolicy
from .engine.state import BranchState


class ForecastErrorGate(FirstBlockGate):
    """Does the first block's forecast hit its actual output?"""

    def error(
        self, step: DenoisingStep, state: BranchState, before: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        if not len(state.first):
            # nothing was remembered during the warm-up: a forecast of 0, as in the authors' code
            return self.compared(state, torch.zeros_like(after), after)
        return self.compared(state, state.first.forecast(state.place(step)), after)


@method("confidence_gated_taylor", paper="2508.02240")
@dataclass(frozen=True, kw_only=True)
class ConfidenceGatedTaylorConfig(BudgetOptions, TargetOptions):
    """The first block always runs; if its own forecast was right, the rest is forecast.

    Both histories are fed on computed steps only, so the error is measured over the same distance
    as the forecast that it licenses. Memory: `order + block_order + 2` hidden states per branch.

    Args:
        threshold: relative L1 error of the first block's forecast below which the remaining blocks
            are skipped, >= 0; 0 is exact. Published: 0.008 (DiT), 0.13 (Flux), 0.36 (Wan), 0.12
            (HunyuanVideo), with the other options of `published:confidence_gated_taylor` there.
        block_order: order of the forecast of the first block.
        warmup: first steps that are computed.
        final: last steps that are computed.
        gate_history: computed steps from which the first block is forecast: `all`, as in the
            authors' code for DiT and Wan, or only those `after_warmup`, as in their code for Flux
            (the first step after the warm-up is then computed too, as nothing can be compared).
        reduce: `batch_mean` (published) compares one error for the whole batch, `worst_sample`
            the worst sample's.
        max_consecutive: forecasts in a row at most; None for no limit (published).

    All other options are those of `TargetOptions` and `BudgetOptions`. As published:
    `coordinate="index"`, `target="hidden"`, `basis="taylor"`, `guidance="independent"` (for Wan
    `follow`) and `correction="never"`.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "dit": {"threshold": 0.008, "order": 1, "block_order": 3, "warmup": 3},
        "flux": {
            "threshold": 0.13,
            "order": 1,
            "block_order": 1,
            "warmup": 5,
            "gate_history": "after_warmup",
        },
        "wan": {
            "threshold": 0.36,
            "order": 1,
            "block_order": 3,
            "warmup": 6,
            "guidance": "follow",
        },
        "hunyuan_video": {"threshold": 0.12, "order": 1, "block_order": 2, "warmup": 6},
    }

    threshold: float = 0.13
    block_order: int = 1
    warmup: int = 3
    final: int = 1
    gate_history: Literal["all", "after_warmup"] = "all"
    reduce: Reduce = "batch_mean"
    max_consecutive: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        require(0 <= self.block_order <= 6, f"block_order is {self.block_order}; give 0 to 6")

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(threshold=0), cls(threshold=1e9, warmup=2)),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        return self.cache_policy(
            ForecastErrorGate(self.threshold, self.reduce == "worst_sample"),
            StepRules(self.warmup, self.final, self.max_consecutive),
            first_feature="output",
            first_order=self.block_order,
            first_remembers_from=self.warmup if self.gate_history == "after_warmup" else 0,
        )
