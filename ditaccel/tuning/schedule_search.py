"""Which steps to compute? Dynamic programming over the steps of recorded dense runs.

Where the scheduler is linear, all latents are weighted sums of outputs (`core.denoising.response`),
so what a gap of forecasts does to them is known from a dense run: the error it leaves before
correction, which the computed step at its end still sees, and the error in the last latents that
stays after correction. Both are linear in the recorded outputs, so that their sizes follow from one
Gram matrix, whatever the size of the latents. The cheapest set of K computed steps is then a
shortest path (compare LeMiCa, arXiv 2511.00090, whose graph weighs reused features instead).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..caching.engine.forecast import newton_weights
from ..caching.engine.gaps import LONGEST_WITH_FEEDBACK
from .masks import Mask, Steps

# Computed steps that a forecast of order 1 needs: so many are computed first, in every transformer.
NEEDED = 2


@dataclass(frozen=True)
class Trajectory:
    """Recorded outputs of one quantity over a denoising loop of S steps.

    Attributes:
        gram: mean inner products of the outputs of steps i and j, `(S, S)`.
        response: `(S + 1, S)`; row j: change of the latents before step j (S: of the last ones) per
            change of each output (`core.denoising.response.Response.latents`).
        feedback: `DenoisingStep.feedback` of each step, `(S,)`.
        switches: first steps of further transformers, across which nothing is forecast.
        places: of the steps on the forecasts' coordinate, `(S,)`; empty for their indices.
    """

    gram: np.ndarray
    response: np.ndarray
    feedback: np.ndarray
    switches: tuple[int, ...] = field(default=())
    places: tuple[float, ...] = field(default=())

    @property
    def steps(self) -> int:
        """Steps of the loop."""
        return len(self.gram)

    def weights(self, nodes: Sequence[int], step: int) -> np.ndarray:
        """Of the outputs of steps `nodes` in the polynomial through them, at `step`."""
        places = self.places or [float(i) for i in range(self.steps)]
        at = [places[node] for node in nodes]
        return np.asarray(newton_weights(at, places[step], len(at) - 1))

    def expert(self, step: int) -> int:
        """Which transformer computes a step, counted from 0."""
        return sum(step >= switch for switch in self.switches)

    def forced(self, warmup: int) -> frozenset[int]:
        """Steps that every plan computes: the first ones, of each transformer, and the last one."""
        first = {s for at in self.switches for s in range(at, at + NEEDED)}
        every = {*range(max(warmup, 1)), *first, self.steps - 1}
        return frozenset(step for step in every if step < self.steps)


class GapCosts:
    """What a gap of forecasts costs: squared error in the latents.

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
        self.steps = trajectory.steps
        self._known: dict[tuple[int, int, int], float] = {}

    def __call__(self, before: int, start: int, end: int) -> float:
        """Cost of forecasting all steps between the computed steps `start` and `end`.

        Args:
            before: the computed step before `start`, -1 if there is none.
            start: computed step at which the gap begins.
            end: computed step at which it ends.
        """
        key = (self.remembered(before, start), start, end)
        if key not in self._known:
            self._known[key] = self._cost(*key) if end > start + 1 else 0.0
        return self._known[key]

    def remembered(self, before: int, start: int) -> int:
        """`before`, or -1 where another transformer computed it: histories end at the switch."""
        return before if self._t.expert(before) == self._t.expert(start) else -1

    def _cost(self, before: int, start: int, end: int) -> float:
        t = self._t
        past = [start] if before < 0 else [start, before]
        seen, left = np.zeros(self.steps), np.zeros(self.steps)
        # a step that moves nothing cannot carry a correction, another transformer's output says
        # nothing of the gap, and noise prediction answers to the error of a long one
        answers = t.feedback[end] > 0.0 and end - start > LONGEST_WITH_FEEDBACK
        moves = t.response[-1, end] != 0.0 and t.expert(start) == t.expert(end)
        nodes = [end, *past] if moves and not answers else past
        for i in range(start + 1, end):
            seen[past] += t.response[end, i] * t.weights(past, i)
            seen[i] -= t.response[end, i]
            left[nodes] += t.response[-1, i] * t.weights(nodes, i)
            left[i] -= t.response[-1, i]
        errors = [max(float(error @ t.gram @ error), 0.0) for error in (left, seen)]
        return errors[0] + self._unseen * errors[1]


def best_steps(
    costs: GapCosts, allowed: Sequence[int], forced: frozenset[int]
) -> dict[int, tuple[float, Steps]]:
    """Return, for every number of computed steps, the least cost and the steps that have it.

    Args:
        costs: of the gaps.
        allowed: steps that may be computed, in order; the first and last always are.
        forced: those of them that are computed in any case.
    """
    places = list(allowed)
    reached: dict[tuple[int, int], tuple[float, Steps]] = {(-1, places[0]): (0.0, (places[0],))}
    found: dict[int, tuple[float, Steps]] = {}
    last = places[-1]
    within = {
        at: [
            p
            for p in places
            if at < p <= at + costs.longest and not any(at < f < p for f in forced)
        ]
        for at in places
    }
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

    @property
    def mask(self) -> Mask:
        """What it computes."""
        return Mask(self.steps, self.others)


def plans(first: Trajectory, difference: Trajectory | None, warmup: int) -> list[Plan]:
    """Return the plans that no other plan beats in both share and cost, the cheapest first.

    Args:
        first: outputs of the first branch (or the guided output, where there is one call per step).
        difference: the other branch's outputs less the first one's, with a response that holds its
            weight in the guided output; None for one call per step.
        warmup: first steps that are computed in any case.
    """
    costs = GapCosts(first)
    steps = costs.steps
    found = []
    # Longer gaps for the difference: it moves slowly.
    other_costs = GapCosts(difference, longest=2 * costs.longest) if difference else None
    forced = first.forced(warmup)
    for count, (cost, path) in best_steps(costs, range(steps), forced).items():
        if other_costs is None:
            if count < steps:  # all of them would be the dense run
                found.append(Plan(path, None, count / steps, cost))
            continue
        if count > 0.6 * steps and (steps - count) % 2:
            continue  # there plans differ little, and each takes as long to find as all short ones
        for others, (extra, nodes) in best_steps(other_costs, path, forced).items():
            share = (count + others) / (2 * steps)
            if share < 1.0:
                found.append(Plan(path, nodes, share, cost + extra))
    front: list[Plan] = []
    for plan in sorted(found, key=lambda p: (p.share, p.cost)):
        if not front or plan.cost < front[-1].cost:
            front.append(plan)
    return front
