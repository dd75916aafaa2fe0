"""The candidates of a space: plans from what was learnt, and settings as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...config import AccelerationConfig
from ..joint.modes import AttentionMap, JointPlan
from ..joint.paths import JointSearch, Prices, lowest
from .race import Candidate
from .records import Learnt

# First steps that are computed in any case, in one half of the plans each.
_WARMUPS = (3, 1)
# Weights of the errors of sparse attention, relative to those of forecasts: see `joint.paths`. Each
# costs one bisection of the first prompt, so only the first map gets them all.
_WEIGHTS = ((1.0, 0.3, 0.1, 0.03), (1.0, 0.3))


def fronts_of(
    learnt: Learnt,
    maps: Sequence[AttentionMap],
    schedules: bool,
    forecast: float,
    steps: int | None,
) -> list[list[Candidate]]:
    """Fronts of plans, each by rising seconds: joint ones, caches alone and attention alone.

    Args:
        learnt: of the loop.
        maps: attention maps, whose modes were recorded in this order.
        schedules: whether steps may be forecast.
        forecast: seconds of a forecast call.
        steps: of the loop where it has fewer than a call asks for, else None.
    """
    total, fronts = learnt.first.steps, []

    def front(
        map: AttentionMap | None, at: int, caching: bool, weight: float = 1.0
    ) -> list[JointPlan]:
        count = 0 if map is None else len(map.modes)
        prices = (learnt.seconds[0], *learnt.seconds[1 + at : 1 + at + count])
        search = JointSearch(
            learnt.first,
            learnt.difference,
            learnt.of_modes(at, count),
            Prices(prices, forecast, learnt.outside),
            map,
            caching,
        )
        return lowest([plan for warmup in _WARMUPS for plan in search.plans(warmup, weight)])

    if schedules:
        fronts.append(("cache", front(None, 0, True)))
    at, sparse = 0, []
    for map in maps:
        count = len(map.modes)
        # a map that never was sparse (short sequences), or that saves no time, is no candidate
        own = range(1 + at, 1 + at + count)
        if any(learnt.seconds[i] < learnt.seconds[0] and learnt.density[i - 1] < 1 for i in own):
            sparse.append((at, map))
        at += count
    joint = [(front(map, at, schedules), at, map) for at, map in sparse]
    middle = 0.5 * (learnt.dense + learnt.outside)
    joint.sort(key=lambda each: _cost_within(each[0], middle))
    # as many maps are run as there are weights for
    for (plans, at, map), (_, *others) in zip(joint, _WEIGHTS, strict=False):
        if schedules:
            fronts.append(("joint", plans))
            fronts += [("joint", front(map, at, True, weight)) for weight in others]
        fronts.append(("attention", front(map, at, False)))
    return [
        [
            Candidate(_with_steps(plan.config(total), steps), kind, plan.seconds)
            for plan in plans
            if kind != "joint" or any(plan.modes)
        ]
        for kind, plans in fronts
    ]


def _cost_within(plans: Sequence[JointPlan], seconds: float) -> float:
    within = [plan.cost for plan in plans if plan.seconds <= seconds]
    return min(within, default=float("inf"))


def _with_steps(config: AccelerationConfig, steps: int | None) -> AccelerationConfig:
    if steps is None:
        return config
    return replace(config, steps=steps)


def fewer(steps: int, seconds: float) -> Candidate:
    """A dense loop of fewer steps."""
    return Candidate(AccelerationConfig(steps=steps, label=f"{steps} steps"), "steps", seconds)
