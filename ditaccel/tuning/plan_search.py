"""Which plans to run against a target, and which of all that were run to take.

What a plan costs is estimated; what it gives is measured, and the two do not rank alike: a plan
that computes more may come out worse. So a bisection only says where to look, and every plan that
was ever run stays in the running.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from .schedule_search import Plan

# Plans just below the cheapest good one that are tried besides, in all.
_BELOW = 3


class Run(Protocol):
    """What running a plan gave."""

    @property
    def computed_share(self) -> float:
        """Share of the transformer calls that were computed."""


R = TypeVar("R", bound=Run)
Check = Callable[[Plan], R]


def _bisect(front: Sequence[Plan], good: Callable[[Plan], bool]) -> None:
    """Run plans towards the cheapest good one, as if a front rose all along."""
    low, high = 0, len(front) - 1
    while low < high:
        middle = (low + high) // 2
        if good(front[middle]):
            high = middle
        else:
            low = middle + 1
    good(front[low])


def cheapest_good(
    fronts: Sequence[Sequence[Plan]],
    check: Check[R],
    checked: Callable[[], Sequence[R]],
    good: Callable[[R], bool],
) -> R | None:
    """Run plans, and return the run with the least computed share that is good.

    Args:
        fronts: plans by share, the cheapest first.
        check: runs a plan, or remembers what it gave.
        checked: all runs so far, those of earlier searches too.
        good: whether a run is.

    Returns:
        None where no plan that was run is good.
    """

    def best() -> R | None:
        return min(filter(good, checked()), key=lambda r: r.computed_share, default=None)

    tried: set[Plan] = set()

    def is_good(plan: Plan) -> bool:
        tried.add(plan)
        return good(check(plan))

    for front in fronts:
        found = best()
        cheaper = [p for p in front if found is None or p.share < found.computed_share - 1e-9]
        if cheaper:
            _bisect(cheaper, is_good)
    for _ in range(_BELOW):
        found = best()
        if found is None:
            break
        below = {
            p
            for front in fronts
            for p in front
            if p not in tried and p.share < found.computed_share - 1e-9
        }
        if not below:
            break
        is_good(max(below, key=lambda p: (p.share, -p.cost)))
    return best()


def best_within(
    fronts: Sequence[Sequence[Plan]], share: float, check: Check[R]
) -> list[list[tuple[Plan, R]]]:
    """Run the two dearest plans of each front that keep to a share.

    Returns:
        For each front its plans and runs, empty where none keeps to it.
    """
    return [
        [(p, check(p)) for p in [p for p in front if p.share <= share][-2:]] for front in fronts
    ]
