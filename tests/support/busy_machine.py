"""A machine whose busy moments stretch wall-clock, so that timing can be tested without waiting.

Work takes process time, give or take some percent; a moment in which other processes have the
processor makes wall-clock several times as long, and the run queue says so where a system tells.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from ditaccel.eval.comparison.rows import Outcome
from ditaccel.eval.comparison.sampler import Generation, Sample
from ditaccel.eval.measure.timing import Timing
from ditaccel.eval.specs import RunConfig

FRAMES = np.zeros((1, 2, 2, 3), np.uint8)


@dataclass
class Machine:
    """Runs rows in simulated time.

    Attributes:
        work: share of dense's time by row id; dense takes one second.
        rng: of busy moments and jitter.
        busy: share of the time in which other work runs; 1 is always.
        clock: whether there is a clock that other work does not stretch.
        queue: whether the system tells of its run queue.
    """

    work: dict[str, float]
    rng: np.random.Generator
    busy: float = 0.3
    clock: bool = True
    queue: bool = True
    _left: float = 0.0
    _stretch: float = 1.0
    runs: int = 0

    def _moment(self) -> None:
        """The next moment: some seconds quiet, or some seconds several times as slow."""
        busy = self.rng.random() < self.busy
        self._left = float(self.rng.exponential(6.0))
        self._stretch = float(self.rng.uniform(1.8, 6.0)) if busy else 1.0

    def take(self, seconds: float) -> Timing:
        """Time some work that takes `seconds` on a quiet machine."""
        self.runs += 1
        process = seconds * float(self.rng.normal(1.0, 0.015))
        wall, todo = 0.0, process
        while todo > 1e-12:
            if self._left <= 1e-9:  # rounding may leave a moment without an end
                self._moment()
            part = min(todo, self._left / self._stretch)
            wall, todo, self._left = (
                wall + part * self._stretch,
                todo - part,
                self._left - part * self._stretch,
            )
        # Caches shared with other work make process time a little longer, too.
        process *= 1.0 + 0.04 * (wall / process > 1.05)
        waited = max(0.0, wall - process) if self.queue else None
        return Timing(wall, process if self.clock else None, None, waited, 0.9 * wall)

    def run(self, row: RunConfig, sample: Sample) -> Outcome:
        """As `Rows.run`."""
        share = self.work[row.id]
        timing = self.take(0.08 + 0.92 * share)
        tally: Any = SimpleNamespace(denoiser_seconds=timing.denoiser, work=share)
        return Outcome(Generation(FRAMES, timing), tally, [], None, None, share)

    def truth(self, row: str) -> float:
        """The speed-up that a quiet machine would show."""
        return 1 / (0.08 + 0.92 * self.work[row])
