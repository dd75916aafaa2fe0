"""Who runs when: each row paired with a dense run of its own, again where the machine was busy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..measure.pairs import Dense, Pair
from ..measure.timing import Timing
from ..specs import RunConfig
from .rows import Outcome
from .sampler import Sample

# More pairs of one row and sample, where the first met a busy moment.
REPEATS = 2
# A machine that was busy in so many repeats, one after the other, stays so: repeats only cost.
GIVE_UP = 6


def in_turn(rows: Sequence[RunConfig], turn: int) -> list[RunConfig]:
    """The rows in the order of one sample: dense first, and the others one further on each time.

    Every other row is compared with dense, so it has to be there first; a slow change of
    the machine then hits the others alike, over the run.
    """
    dense, *others = rows
    shift = turn % len(others) if others else 0
    return [dense, *others[shift:], *others[:shift]]


class Turns:
    """Times rows in pairs with dense.

    Args:
        run: makes a generation of a row: the row's or dense's.
        before: dense runs that an earlier part of the comparison timed.
    """

    def __init__(
        self, run: Callable[[RunConfig, Sample], Outcome], before: Sequence[Timing] = ()
    ) -> None:
        self._run = run
        self.dense_runs = list(before)
        self._in_vain = 0
        self.dense_changed = False

    def _twin(self, dense: RunConfig, sample: Sample, reference: np.ndarray) -> Timing:
        """Time one dense run, and compare its frames with those of the sample."""
        outcome = self._run(dense, sample)
        self.dense_runs.append(outcome.timing)
        if not np.array_equal(outcome.generation.frames, reference):
            self.dense_changed = True
        return outcome.timing

    def _pair(
        self, dense: RunConfig, row: RunConfig, sample: Sample, reference: np.ndarray, turn: int
    ) -> tuple[Outcome, Pair]:
        # They take turns in being first, so that a drift divides out as well.
        if turn % 2:
            outcome = self._run(row, sample)
            return outcome, Pair(self._twin(dense, sample, reference), outcome.timing)
        before = self._twin(dense, sample, reference)
        outcome = self._run(row, sample)
        return outcome, Pair(before, outcome.timing)

    def _disturbed(self, pair: Pair) -> bool:
        return pair.busy or pair.unsteady(Dense.of(self.dense_runs))

    def timed(
        self, dense: RunConfig, row: RunConfig, sample: Sample, reference: np.ndarray, turn: int
    ) -> tuple[Outcome, list[Pair]]:
        """One generation of a row, with its pairs.

        Args:
            dense: the dense row.
            row: any other row.
            sample: prompt and seed.
            reference: the sample's dense frames.
            turn: number of the sample.
        """
        outcome, pair = self._pair(dense, row, sample, reference, turn)
        pairs = [pair]
        while len(pairs) <= REPEATS and self._in_vain < GIVE_UP and self._unclear(pairs):
            pairs.append(self._pair(dense, row, sample, reference, turn + len(pairs))[1])
            self._in_vain = self._in_vain + 1 if self._disturbed(pairs[-1]) else 0
        return outcome, pairs

    def _unclear(self, pairs: Sequence[Pair]) -> bool:
        return all(self._disturbed(pair) for pair in pairs)
