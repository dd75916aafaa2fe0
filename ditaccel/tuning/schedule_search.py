"""Which steps to compute? Dynamic programming over the steps of recorded dense runs.

The latents of an additive scheduler are a sum of outputs, so what a gap of forecasts does to them
is known from a dense run: the error it leaves before correction (which the computed step at its end
still sees) and the error that stays after correction. Both are linear in the recorded outputs, so
that their sizes follow from one Gram matrix, whatever the size of the latents. The cheapest set of
K computed steps is then a shortest path (compare LeMiCa, arXiv 2511.00090, whose graph weighs
reused features instead).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..caching.engine.forecast import newton_weights
from ..caching.engine.gaps import LONGEST_WITH_FEEDBACK

Steps = tuple[int, ...]


@dataclass(frozen=True)
class Trajectory:
    """Recorded outputs of one quantity over a denoising loop.

    Attributes:
        gram: mean inner products of the outputs of steps i and j, `(S, S)`.
        widths: `sigma_next - sigma` of each step, `(S,)`.
        scales: `DenoisingStep.latent_scale` of each step, `(S,)`.
    """

    gram: np.ndarray
    widths: np.ndarray
    scales: np.ndarray


class GapCosts:
    """What a gap of forecasts costs: squared error in the latents, by their size.

    Args:
        trajectory: recorded outputs.
        unseen: weight of the error that the computed step at the end of the gap still sees, by that
            of the error that stays.
        longest: longest distance of computed steps.
    """

    def __init__(self, trajectory: Trajectory, unseen: float = 0.3, longest: int = 12) -> None:
        self._t = trajectory
        self._unseen = unseen
        self.longest = longest
        self.steps = len(trajectory.widths)
        self._known: dict[tuple[int, int, int], float] = {}

    def __call__(self, before: int, start: int, end: int) -> float:
        """Cost of forecasting all steps between the computed steps `start` and `end`.

        Args:
            before: the computed step before `start`, -1 if there is none.
            start: computed step at which the gap begins.
            end: computed step at which it ends.
        """
        key = (before, start, end)
        if key not in self._known:
            self._known[key] = self._cost(*key) if end > start + 1 else 0.0
        return self._known[key]

    def _cost(self, before: int, start: int, end: int) -> float:
        past = [start] if before < 0 else [start, before]
        extrapolation = np.zeros(self.steps)
        interpolation = np.zeros(self.steps)
        for i in range(start + 1, end):
            width = self._t.widths[i]
            for error, nodes in ((extrapolation, past), (interpolation, [end, *past])):
                weights = newton_weights([float(n) for n in nodes], float(i), len(nodes) - 1)
                error[nodes] += width * np.asarray(weights)
                error[i] -= width
        seen = extrapolation @ self._t.gram @ extrapolation
        # a step of width 0 cannot carry a correction, and noise prediction none of a long gap
        answers = self._t.scales[end] != 1.0 and end - start > LONGEST_WITH_FEEDBACK
        kept = extrapolation if self._t.widths[end] == 0.0 or answers else interpolation
        left = kept @ self._t.gram @ kept
        return float(max(left, 0.0) + self._unseen * max(seen, 0.0)) / self._t.scales[end] ** 2


def best_steps(
    costs: GapCosts, allowed: Sequence[int], warmup: int
) -> dict[int, tuple[float, Steps]]:
    """Return, for every number of computed steps, the least cost and the steps that have it.

    Args:
        costs: of the gaps.
        allowed: steps that may be computed, in order; the first and last always are.
        warmup: number of first steps of `allowed` that are computed in any case.
    """
    places = list(allowed)
    fixed = places[: max(warmup, 1)]
    total = 0.0
    for i in range(1, len(fixed)):
        total += costs(fixed[i - 2] if i > 1 else -1, fixed[i - 1], fixed[i])
    state = (fixed[-2] if len(fixed) > 1 else -1, fixed[-1])
    reached: dict[tuple[int, int], tuple[float, Steps]] = {state: (total, tuple(fixed))}
    found: dict[int, tuple[float, Steps]] = {}
    last = places[-1]
    within = {at: [p for p in places if at < p <= at + costs.longest] for at in places}
    while reached:
        done = [value for (_, at), value in reached.items() if at == last]
        if done:
            cost, path = min(done)
            found[len(path)] = (cost, path)
        following: dict[tuple[int, int], tuple[float, Steps]] = {}
        for (before, at), (cost, path) in reached.items():
            for end in within[at]:
                candidate = (cost + costs(before, at, end), (*path, end))
                if (at, end) not in following or candidate < following[at, end]:
                    following[at, end] = candidate
        reached = following
    return found


@dataclass(frozen=True)
class Plan:
    """Computed steps of the first branch and of the others.

    Attributes:
        steps: computed steps of the first (or only) branch.
        others: computed steps of the other branches, None where there are none.
        share: computed share of all transformer calls.
        cost: expected squared error in the latents.
    """

    steps: Steps
    others: Steps | None
    share: float
    cost: float


def plans(
    first: Trajectory, difference: Trajectory | None, weight: float, warmup: int
) -> list[Plan]:
    """Return the plans that no other plan beats in both share and cost, the cheapest first.

    Args:
        first: outputs of the first branch (or the guided output, where there is one call a step).
        difference: the other branch's outputs less the first one's, None for one call a step.
        weight: factor of the difference in the guided output.
        warmup: first steps that are computed in any case.
    """
    costs = GapCosts(first)
    steps = costs.steps
    found = []
    # Longer gaps for the difference: it moves slowly.
    other_costs = GapCosts(difference, longest=2 * costs.longest) if difference else None
    for count, (cost, path) in best_steps(costs, range(steps), warmup).items():
        if other_costs is None:
            if count < steps:  # all of them would be the dense run
                found.append(Plan(path, None, count / steps, cost))
            continue
        if count > 0.6 * steps and (steps - count) % 2:
            continue  # there plans differ little, and each takes as long to find as all short ones
        for others, (extra, nodes) in best_steps(other_costs, path, warmup).items():
            share = (count + others) / (2 * steps)
            if share < 1.0:
                found.append(Plan(path, nodes, share, cost + weight**2 * extra))
    front: list[Plan] = []
    for plan in sorted(found, key=lambda p: (p.share, p.cost)):
        if not front or plan.cost < front[-1].cost:
            front.append(plan)
    return front
