"""The one budget: forecasts and sparse attention both cost error in the latents and save seconds.

The error that a computed step's sparse attention makes goes into the latents as the outputs do
(`core.denoising.response`), and into every forecast that is made of that step. So both kinds of
error are sums of recorded vectors, their sizes follow from one Gram matrix, and a plan is a
shortest path over the computed steps: an edge costs the error of the gap that it spans plus, at a
price of error per second, the seconds of the step that it leaves in its best mode (Lagrange). One
path per price gives the plans between which nothing is cheaper.

What a unit of either error costs in the pictures is not quite the same. Errors of sparse attention
are much alike from step to step (`coherence`), but the transformer sees them in its input and takes
a part back. So plans are made for several weights of sparse errors, and runs decide between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...caching.engine.gaps import LONGEST_WITH_FEEDBACK
from ..masks import Steps
from ..schedule_search import GapCosts, Plan, Trajectory
from .modes import AttentionMap, JointPlan

# How often a range of prices is halved, at most, where the plans at its ends differ.
_HALVINGS = 7
# Prices to begin with, as shares of the squared output that a second is worth.
_DEAREST, _CHEAPEST = 1e6, 1e-12

# (step before, step, next step) -> (cost, mode of the step)
Edge = Callable[[int, int, int], tuple[float, int]]


@dataclass(frozen=True)
class Prices:
    """Measured seconds on this machine.

    Attributes:
        calls: of a transformer call, dense and in each mode.
        forecast: of a call that is forecast instead.
        outside: of a generation outside the transformer.
    """

    calls: tuple[float, ...]
    forecast: float = 0.0
    outside: float = 0.0


class JointCosts:
    """Errors of gaps whose computed steps may be sparse.

    Args:
        trajectory: of the outputs.
        gram: `(S (1 + M), S (1 + M))`, see `ModeErrors`.
        unseen: as in `GapCosts`.
        longest: longest distance of computed steps.
    """

    def __init__(
        self, trajectory: Trajectory, gram: np.ndarray, unseen: float = 0.3, longest: int = 12
    ) -> None:
        self._t, self._gram, self._unseen = trajectory, gram, unseen
        self.longest, self.steps = longest, trajectory.steps
        self.modes = len(gram) // self.steps
        self._known: dict[tuple[int, int, int, int], tuple[float, float]] = {}

    def __call__(self, before: int, start: int, end: int, mode: int, weight: float = 1.0) -> float:
        """Squared error of a step in a mode and of the gap behind it.

        Args:
            before: computed step before `start`, -1 if there is none.
            start: the step.
            end: the next computed step; S behind the last one.
            mode: of the step; the gap's other steps are taken to be in the same.
            weight: of what is due to sparse attention alone.
        """
        if self._t.expert(before) != self._t.expert(start):
            before = -1  # histories end at the switch
        key = before, start, end, mode
        if key not in self._known:
            self._known[key] = self._parts(*key)
        forecast, sparse = self._known[key]
        return forecast + weight * sparse

    def _parts(self, before: int, start: int, end: int, mode: int) -> tuple[float, float]:
        """The error without and with what is due to sparse attention alone."""
        forecast = sparse = 0.0
        vectors = self.vectors(before, start, end, mode)
        for weight, vector in zip((1.0, self._unseen), vectors, strict=True):
            outputs, errors = vector.copy(), vector.copy()
            outputs[self.steps :], errors[: self.steps] = 0.0, 0.0
            forecast += weight * (self.size(outputs) + 2 * self.size(outputs, errors))
            sparse += weight * self.size(errors)
        return forecast, sparse

    def size(self, a: np.ndarray, b: np.ndarray | None = None) -> float:
        """Inner product of two sums of recorded vectors, by default of one with itself."""
        b = a if b is None else b
        rows, columns = np.flatnonzero(a), np.flatnonzero(b)
        return float(a[rows] @ self._gram[np.ix_(rows, columns)] @ b[columns])

    def vectors(
        self, before: int, start: int, end: int, mode: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """What is left in the last latents, and what the step at the end sees, in recorded vectors.

        For the arguments see `__call__`.
        """
        t, steps = self._t, self.steps
        left, seen = np.zeros(len(self._gram)), np.zeros(len(self._gram))
        past = [start] if before < 0 else [start, before]
        nodes = [end, *past] if self._corrected(start, end) else past
        for i in range(start + 1, end):
            for vector, response, using in (
                (seen, t.response[end, i], past),
                (left, t.response[-1, i], nodes),
            ):
                weights = response * t.weights(using, i)
                vector[using] += weights
                vector[i] -= response
                if mode:
                    vector[[mode * steps + node for node in using]] += weights
        if mode:
            left[mode * steps + start] += t.response[-1, start]
            seen[mode * steps + start] += t.response[end, start]
        return left, seen

    def _corrected(self, start: int, end: int) -> bool:
        """Whether the step at the end of a gap corrects it; see `GapCosts`."""
        t = self._t
        if end >= self.steps or end == start + 1:
            return False
        answers = t.feedback[end] > 0.0 and end - start > LONGEST_WITH_FEEDBACK
        moves = t.response[-1, end] != 0.0 and t.expert(start) == t.expert(end)
        return bool(moves and not answers)

    def coherence(self, mode: int) -> float:
        """The error of a mode at all steps, by the sum of what it is at each of them."""
        whole, apart = np.zeros(len(self._gram)), 0.0
        for step in range(self.steps):
            one = np.zeros(len(self._gram))
            one[mode * self.steps + step] = self._t.response[-1, step]
            whole += one
            apart += self.size(one)
        return self.size(whole) / apart if apart > 0 else 1.0


def shortest(
    edge: Edge, places: Sequence[int], forced: frozenset[int], longest: int, steps: int
) -> tuple[float, Steps, Steps]:
    """The path of least cost from the first to the last of some steps.

    Args:
        edge: what a gap costs, and the mode of the step at which it begins.
        places: steps that may be computed, rising; the first and the last are.
        forced: those of them that are in any case.
        longest: longest distance of computed steps.
        steps: of the loop, which is the end of the last edge.

    Returns:
        The cost, the steps, and their modes.
    """
    last = places[-1]
    reached: dict[tuple[int, int], tuple[float, Steps, Steps]] = {(-1, places[0]): (0.0, (), ())}
    found: list[tuple[float, Steps, Steps]] = []
    for at in places:
        within = [steps] if at == last else []
        for end in places:
            if at < end <= at + longest and not any(at < f < end for f in forced):
                within.append(end)
        for before, here in [key for key in reached if key[1] == at]:
            cost, path, modes = reached[before, here]
            for end in within:
                more, mode = edge(before, at, end)
                new = cost + more, (*path, at), (*modes, mode)
                if end == steps:
                    found.append(new)
                elif (at, end) not in reached or new < reached[at, end]:
                    reached[at, end] = new
    return min(found)


class JointSearch:
    """Plans for all prices of error, of one attention map or of none.

    Args:
        first: outputs of the first branch, see `schedule_search.plans`.
        difference: the other branch's, None for one call per step.
        gram: see `ModeErrors`; of dense outputs alone, nothing is sparse.
        prices: of dense and of the modes of the map.
        map: that the modes are of.
        caching: whether steps may be forecast.
    """

    def __init__(
        self,
        first: Trajectory,
        difference: Trajectory | None,
        gram: np.ndarray,
        prices: Prices,
        map: AttentionMap | None = None,
        caching: bool = True,
    ) -> None:
        self._costs = JointCosts(first, gram)
        self._first, self._prices, self._map = first, prices, map
        self._others = GapCosts(difference, longest=24) if difference is not None else None
        self._branches = 1 if difference is None else 2
        self._caching = caching
        self._scale = float(np.mean(np.diag(gram)[: first.steps])) / max(prices.calls)

    def plans(self, warmup: int, weight: float = 1.0) -> list[JointPlan]:
        """The plans that no other plan beats in both seconds and error, the fastest first.

        Args:
            warmup: first steps that are computed in any case.
            weight: of the errors of sparse attention, by those of forecasts.
        """
        found: dict[tuple[object, ...], JointPlan] = {}
        low, high = (self._at(price, weight, warmup) for price in (_CHEAPEST, _DEAREST))
        self._between((_CHEAPEST, low), (_DEAREST, high), weight, warmup, 0, found)
        return lowest(list(found.values()))

    def _between(
        self,
        low: tuple[float, JointPlan],
        high: tuple[float, JointPlan],
        weight: float,
        warmup: int,
        depth: int,
        found: dict[tuple[object, ...], JointPlan],
    ) -> None:
        keys = [(p.plan.steps, p.plan.others, p.modes) for _, p in (low, high)]
        for key, (_, plan) in zip(keys, (low, high), strict=True):
            if not self._is_dense(plan):
                found[key] = plan
        if keys[0] == keys[1] or depth >= _HALVINGS:
            return
        price = (low[0] * high[0]) ** 0.5
        middle = price, self._at(price, weight, warmup)
        self._between(low, middle, weight, warmup, depth + 1, found)
        self._between(middle, high, weight, warmup, depth + 1, found)

    def _is_dense(self, plan: JointPlan) -> bool:
        steps = self._first.steps
        whole = len(plan.plan.steps) == steps and plan.plan.others in (None, plan.plan.steps)
        return whole and not any(plan.modes)

    def _at(self, price: float, weight: float, warmup: int) -> JointPlan:
        """The best plan where a second is worth so much error."""
        steps, prices, worth = self._first.steps, self._prices, price * self._scale
        modes = range(self._costs.modes)
        every = range(steps)
        forced = self._first.forced(warmup) if self._caching else frozenset(every)

        def spent(mode: int, at: int, end: int) -> float:
            skipped = prices.forecast * (end - at - 1)
            return worth * self._branches * (prices.calls[mode] + skipped)

        def edge(before: int, at: int, end: int) -> tuple[float, int]:
            return min(
                (self._costs(before, at, end, mode, weight) + spent(mode, at, end), mode)
                for mode in modes
            )

        _, path, chosen = shortest(edge, every, forced, self._costs.longest, steps)
        befores, ends = (-1, *path[:-1]), (*path[1:], steps)
        gaps = zip(befores, path, ends, chosen, strict=True)
        cost = sum(self._costs(*gap, weight) for gap in gaps)
        others: Steps | None = None
        if self._others is not None:
            others, extra = self._path_of_others(path, dict(zip(path, chosen, strict=True)), worth)
            cost += extra
        return self._made(path, chosen, others, cost)

    def _path_of_others(
        self, path: Steps, modes: Mapping[int, int], worth: float
    ) -> tuple[Steps, float]:
        if not self._caching:
            return path, 0.0
        costs, prices = self._others, self._prices
        assert costs is not None

        def edge(before: int, at: int, end: int) -> tuple[float, int]:
            error = costs(before, at, end) if end < costs.steps else 0.0
            return error + worth * (prices.calls[modes[at]] - prices.forecast), 0

        forced = self._first.forced(1)
        total, nodes, _ = shortest(edge, path, forced, costs.longest, costs.steps)
        spent = sum(worth * (prices.calls[modes[at]] - prices.forecast) for at in nodes)
        return nodes, max(total - spent, 0.0)

    def _made(self, path: Steps, modes: Steps, others: Steps | None, cost: float) -> JointPlan:
        prices, steps = self._prices, self._first.steps
        of = dict(zip(path, modes, strict=True))
        calls = [*path, *(others or ())]
        seconds = prices.outside + sum(prices.calls[of[step]] for step in calls)
        seconds += prices.forecast * (self._branches * steps - len(calls))
        plan = Plan(path, others, len(calls) / (self._branches * steps), cost)
        return JointPlan(plan, modes, self._map if any(modes) else None, seconds)


def lowest(plans: Sequence[JointPlan]) -> list[JointPlan]:
    """The plans that no other one beats in both seconds and error, the fastest first."""
    front: list[JointPlan] = []
    for plan in sorted(plans, key=lambda p: (p.seconds, p.cost)):
        if not front or plan.cost < front[-1].cost:
            front.append(plan)
    return front
