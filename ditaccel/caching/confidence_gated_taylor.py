"""Confidence-gated Taylor (arXiv 2508.02240): forecast when the first block's forecast holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..config import CacheConfig, Example, method, require
from .gate import ForecastErrorGate, StepRules
from .options import (
    Basis,
    Bytes,
    Coordinate,
    Correction,
    ForecastTarget,
    Guidance,
    MemoryBudget,
    OnBudget,
    Reduce,
    check_forecast,
    check_threshold,
)
from .policy import CachePolicy


@method("confidence_gated_taylor", paper="2508.02240")
@dataclass(frozen=True)
class ConfidenceGatedTaylorConfig(CacheConfig):
    """The first block always runs; if its own forecast was right, the rest is forecast.

    Both histories are fed on computed steps only, so the error is measured over the same distance
    as the forecast that it licenses. Memory: `order + block_order + 2` hidden states per branch.

    Args:
        threshold: relative L1 error of the first block's forecast below which the remaining blocks
            are skipped, >= 0; 0 is exact. Published: 0.008 (DiT), 0.13 (Flux), 0.36 (Wan), 0.12
            (HunyuanVideo), with the other options of `published:confidence_gated_taylor` there.
        order: order of the forecast of the last block.
        block_order: order of the forecast of the first block.
        warmup: first steps that are computed.
        final: last steps that are computed.
        gate_history: computed steps from which the first block is forecast: `all`, as in the
            authors' code for DiT and Wan, or only those `after_warmup`, as in their code for Flux
            (the first step after the warm-up is then computed too, as nothing can be compared).
        reduce: `batch_mean` (published) compares one error for the whole batch, `worst_sample`
            the worst sample's.
        max_consecutive: forecasts in a row at most; None for no limit (published).
        coordinate: forecast along the step `index` (published), `sigma` or `timestep`.
        target: forecast the `hidden` state (published), or the `residual` since the first block.
        basis: `taylor` (published), `newton`, `hermite`, `exponential`; `auto` (ours) takes the one
            with the least error on the computed steps so far.
        guidance: every branch decides for itself (`independent`), the others `follow` the first
            (published for Wan), or they follow and forecast only the `difference` to it (ours).
        correction: make good in the latents what the forecasts of a gap were wrong by, once the
            gap ends (`correction.py`, ours): `auto` where the scheduler allows it, `always`,
            `never` (published).
        memory_budget: bytes, or text like `2GB`, that the cache may take; None for no limit.
        on_budget: `refuse`, or `downgrade` to a lower order.
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
    order: int = 1
    block_order: int = 1
    warmup: int = 3
    final: int = 1
    gate_history: Literal["all", "after_warmup"] = "all"
    reduce: Reduce = "batch_mean"
    max_consecutive: int | None = None
    coordinate: Coordinate = "index"
    target: ForecastTarget = "hidden"
    basis: Basis = "taylor"
    guidance: Guidance = "independent"
    correction: Correction = "never"
    memory_budget: Bytes | None = None
    on_budget: OnBudget = "refuse"

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        check_forecast(self)
        require(0 <= self.block_order <= 6, f"block_order is {self.block_order}; give 0 to 6")
        MemoryBudget.check(self)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(threshold=0), cls(threshold=1e9, warmup=2)),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        return CachePolicy(
            gate=ForecastErrorGate(self.threshold, self.reduce == "worst_sample"),
            rules=StepRules(self.warmup, self.final, self.max_consecutive),
            order=self.order,
            basis=self.basis,
            coordinate=self.coordinate,
            target=self.target,
            first_feature="output",
            first_order=self.block_order,
            first_remembers_from=self.warmup if self.gate_history == "after_warmup" else 0,
            guidance=self.guidance,
            correction=self.correction,
            memory_budget=MemoryBudget.parse(self.memory_budget),
            on_budget=self.on_budget,
        )
