"""Explicit step mask: the computed steps are named, all others are forecast, as a baseline."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import CacheConfig, Example, method, require
from .gate import MaskGate, StepRules
from .options import Basis, Coordinate, Correction, ForecastTarget, Guidance, check_forecast
from .policy import CachePolicy


@method("step_mask", baseline=True)
@dataclass(frozen=True)
class StepMaskConfig(CacheConfig):
    """A fixed budget with a predictable latency.

    Args:
        steps: indices of the computed steps, counted from 0; must hold 0.
        total: steps of the loop that the mask was made for; None for any. Another number is an
            error when the pipeline is called.
        order: order of the forecast, >= 0.
        coordinate: forecast along the step `index`, `sigma` or `timestep`.
        target: forecast the `hidden` state, the `residual` over all blocks, or the transformer's
            `output`: then nothing of it runs on a forecast step.
        basis: `taylor`, `newton`, `hermite`, `exponential` or `auto`.
        guidance_steps: with `difference`, computed steps of the other branches (of those in
            `steps`), instead of `guidance_interval`.
        correction: make good in the latents what the forecasts of a gap were wrong by, once the
            gap ends (`correction.py`): `auto` where the scheduler allows it, `always`, `never`.
        guidance: `independent`, `follow` or `difference`.
        guidance_interval: with `difference`, computed steps of the first branch per computed step
            of the other branches.
    """

    steps: tuple[int, ...] = (0,)
    total: int | None = None
    order: int = 1
    coordinate: Coordinate = "index"
    target: ForecastTarget = "output"
    basis: Basis = "taylor"
    guidance: Guidance = "independent"
    guidance_interval: int = 1
    guidance_steps: tuple[int, ...] | None = None
    correction: Correction = "never"

    def __post_init__(self) -> None:
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
        check_forecast(self)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(steps=tuple(range(20))), cls(steps=(0, 2))),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        return CachePolicy(
            gate=MaskGate(frozenset(self.steps), self.total),
            rules=StepRules(warmup=1),
            order=self.order,
            basis=self.basis,
            coordinate=self.coordinate,
            target=self.target,
            guidance=self.guidance,
            guidance_interval=self.guidance_interval,
            guidance_steps=None if self.guidance_steps is None else frozenset(self.guidance_steps),
            correction=self.correction,
        )
