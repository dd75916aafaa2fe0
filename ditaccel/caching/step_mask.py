"""Explicit step mask: the computed steps are named, all others are forecast, as a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..config import Example, method, require
from ..core.denoising.tracker import DenoisingStep
from ..core.reasons import Reason
from ..errors import ConfigError
from .engine.gate import Gate, StepRules, resampled
from .engine.options import MOST_ORDER, DifferenceOptions, ForecastTarget, TargetOptions
from .engine.policy import CachePolicy
from .engine.state import BranchState, Verdict


@dataclass
class MaskGate(Gate):
    """An explicit list of computed steps.

    Args:
        steps: that are computed.
        total: steps of the loop that they were chosen for, None for any.
        orders: computed step -> order of the forecasts between it and the next one.
        other_orders: the same of the branches that follow.
        resample: see `StepMaskConfig`.
    """

    steps: frozenset[int]
    total: int | None = None
    orders: Mapping[int, int] = field(default_factory=dict)
    other_orders: Mapping[int, int] = field(default_factory=dict)
    resample: bool = False

    by_place = True

    @property
    def made_for(self) -> int | None:  # type: ignore[override]
        return None if self.resample else self.total

    def check(self, step: DenoisingStep) -> None:
        if not self.resample and self.total is not None and step.total not in (None, self.total):
            raise ConfigError(
                f"the step mask was made for {self.total} steps, this run has {step.total}; call "
                f"the pipeline with num_inference_steps={self.total}, or move the mask to the "
                "noise levels of this run with the option resample=true"
            )
        computed = self.computed(step.total)
        for part in step.parts:
            if computed.isdisjoint(part):
                raise ConfigError(
                    f"the step mask computes none of the steps {part[0]} to {part[-1]}, which "
                    "another transformer makes: name at least one of them (best the first)"
                )

    def computed(self, total: int | None) -> frozenset[int]:
        """The steps that are computed in a loop of `total`."""
        if self.resample and total is not None and self.total not in (None, total):
            assert self.total is not None
            return resampled(self.steps, self.total, total)
        return self.steps

    def skips_nothing(self, total: int | None) -> bool:
        return total is not None and self.computed(total).issuperset(range(total))

    def order_at(self, step: DenoisingStep, follows: bool) -> int | None:
        orders = self.other_orders if follows else self.orders
        begun = [at for at in orders if at <= step.index]
        return orders[max(begun)] if begun else None

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        if step.index in self.computed(step.total):
            return Verdict(False, Reason.IN_MASK)
        return Verdict(True, Reason.NOT_IN_MASK)


@method("step_mask", baseline=True)
@dataclass(frozen=True, kw_only=True)
class StepMaskConfig(DifferenceOptions, TargetOptions):
    """Compute the steps that are named, and forecast all others: a fixed budget.

    Args:
        steps: indices of the computed steps, counted from 0; must hold 0.
        total: steps of the loop that the mask was made for; None for any. Another number is an
            error when the pipeline is called, unless `resample` is on.
        resample: in a loop of another number of steps, compute the steps at the noise levels where
            the named ones were (`resampled`); needs `total`.
        guidance_steps: with `guidance="difference"`, computed steps of the other branches (of those
            in `steps`), instead of `guidance_interval`.
        orders: one order per entry of `steps`: that of the forecasts between this computed step and
            the next, in place of `order`; empty for `order` everywhere.
        guidance_orders: the same per entry of `guidance_steps`.

    All other options are those of `TargetOptions` and `DifferenceOptions`.
    """

    steps: tuple[int, ...] = (0,)
    total: int | None = None
    resample: bool = False
    target: ForecastTarget = "output"
    guidance_steps: tuple[int, ...] | None = None
    orders: tuple[int, ...] = ()
    guidance_orders: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            all(isinstance(s, int) and s >= 0 for s in self.steps) and 0 in self.steps,
            f"steps is {self.steps}; it must be step indices that include 0",
        )
        beyond = [s for s in self.steps if self.total is not None and s >= self.total]
        require(not beyond, f"steps holds {beyond}, but total is {self.total}")
        require(
            not self.resample or self.total is not None,
            "resample needs total, the number of steps that the mask was made for",
        )
        stray = sorted(set(self.guidance_steps or ()) - set(self.steps))
        require(not stray, f"guidance_steps holds {stray}, which are not in steps")
        require(
            not self.resample or (self.guidance_steps is None and not self.orders),
            "resample moves steps alone; leave guidance_steps and orders out",
        )
        require(
            self.guidance_steps is None or self.guidance == "difference",
            "guidance_steps needs guidance='difference'",
        )
        _check_orders("orders", self.orders, "steps", self.steps)
        _check_orders(
            "guidance_orders", self.guidance_orders, "guidance_steps", self.guidance_steps or ()
        )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(steps=tuple(range(20))), cls(steps=(0, 2, 5))),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        others = None if self.guidance_steps is None else frozenset(self.guidance_steps)
        gate = MaskGate(
            frozenset(self.steps),
            self.total,
            dict(zip(self.steps, self.orders, strict=False)),
            dict(zip(self.guidance_steps or (), self.guidance_orders, strict=False)),
            self.resample,
        )
        order = max((self.order, *self.orders, *self.guidance_orders))
        rules = StepRules(warmup=1, exact=True)
        return self.cache_policy(gate, rules, guidance_steps=others, order=order)


def _check_orders(name: str, orders: tuple[int, ...], of: str, steps: tuple[int, ...]) -> None:
    require(
        not orders or len(orders) == len(steps),
        f"{name} has {len(orders)} entries, and {of} has {len(steps)}; give one order per step",
    )
    wrong = [order for order in orders if not 0 <= order <= MOST_ORDER]
    require(not wrong, f"{name} holds {wrong}; an order is 0 (reuse) to {MOST_ORDER}")
