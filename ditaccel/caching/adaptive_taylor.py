"""Adaptive Taylor: the interval follows the forecast's own error, as step sizes do in ODE solvers.

A computed step shows what the forecasts of the gap before it left in the latents. With order m
that error grows like C g^(m+2) with the gap g, so one measured error gives the gap that meets a
tolerance (Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, section II.4). No
block runs on a forecast step, and what is measured is the error that matters, not a proxy.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import CacheConfig, Example, method, require
from .gate import StepRules, StepSizeGate
from .options import (
    Basis,
    Bytes,
    Coordinate,
    Correction,
    ForecastTarget,
    Guidance,
    MemoryBudget,
    OnBudget,
    check_forecast,
)
from .policy import CachePolicy

# Early steps decide what is drawn: an error of a thousandth there has turned a background from dark
# to light. So a share of the loop is computed first, however long it is.
BASE_WARMUP = 0.35
BASE_GUIDANCE = "independent"
_LEAST = 3  # steps that such a share stands for, at least


@method("adaptive_taylor", base={"warmup": BASE_WARMUP, "guidance": BASE_GUIDANCE})
@dataclass(frozen=True)
class AdaptiveTaylorConfig(CacheConfig):
    """Error-controlled distance between computed steps.

    Args:
        tolerance: error that one gap may leave in the latents, as mean absolute error by their
            mean absolute value, worst sample of the batch, >= 0; 0 is exact. Larger is faster.
        order: order of the forecast, >= 1.
        warmup: first steps that are computed: a number of them, more than `order`, or a share of
            the loop's steps below 1 (then at least 3). None: the family's own, else 0.35.
        final: last steps that are computed.
        max_interval: largest distance of computed steps.
        coordinate: forecast along the step `index`, `sigma` or `timestep`.
        target: forecast the `hidden` state, the `residual` over all blocks, or the transformer's
            `output`: then nothing of it runs on a forecast step.
        basis: `taylor`, `newton`, `hermite`, `exponential` or `auto`.
        guidance: every branch for itself (`independent`), the others `follow` the first, or they
            follow and forecast only the `difference` to it. None: the family's own, else
            `independent`.
        guidance_interval: with `difference`, computed steps of the first branch per computed step
            of the other branches.
        correction: make good in the latents what the forecasts of a gap were wrong by, once the
            gap ends (`correction.py`): `auto` where the scheduler allows it, `always`, `never`.
        memory_budget: bytes, or text like `2GB`, that the cache may take; None for no limit.
        on_budget: `refuse`, or `downgrade` to a lower order.
    """

    tolerance: float = 0.01
    order: int = 1
    warmup: int | float | None = None
    final: int = 1
    max_interval: int = 12
    coordinate: Coordinate = "index"
    target: ForecastTarget = "output"
    basis: Basis = "taylor"
    guidance: Guidance | None = None
    guidance_interval: int = 1
    correction: Correction = "auto"
    memory_budget: Bytes | None = None
    on_budget: OnBudget = "refuse"

    def __post_init__(self) -> None:
        require(
            0.0 <= self.tolerance < float("inf"),
            f"tolerance is {self.tolerance}; it must be 0 (exact) or a positive number",
        )
        check_forecast(self)
        if self.warmup is not None and not 0 < self.warmup < 1:
            require(
                float(self.warmup).is_integer(),
                f"warmup is {self.warmup}; give a whole number of steps, or a share below 1",
            )
            require(
                self.warmup > self.order,
                f"warmup is {self.warmup}; order {self.order} needs at least {self.order + 1}",
            )
        require(self.max_interval >= 1, f"max_interval is {self.max_interval}; give 1 or more")
        MemoryBudget.check(self)

    def _rules(self, warmup: int | float) -> StepRules:
        needed = self.order + 1
        if 0 < warmup < 1:
            return StepRules(max(_LEAST, needed), self.final, needed=needed, warmup_share=warmup)
        return StepRules(int(warmup), self.final, needed=needed)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(tolerance=0), cls(tolerance=1e9, warmup=2)),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        warmup = BASE_WARMUP if self.warmup is None else self.warmup
        return CachePolicy(
            gate=StepSizeGate(self.tolerance, self.order, self.max_interval),
            rules=self._rules(warmup),
            order=self.order,
            basis=self.basis,
            coordinate=self.coordinate,
            target=self.target,
            guidance=self.guidance or BASE_GUIDANCE,
            guidance_interval=self.guidance_interval,
            correction=self.correction,
            memory_budget=MemoryBudget.parse(self.memory_budget),
            on_budget=self.on_budget,
        )
