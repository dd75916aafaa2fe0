"""Recorded dense runs as arrays on disk: what a search needs of them, made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..joint.recording import ModeErrors
from ..recording import Recording
from ..schedule_search import Trajectory
from ..trajectories import Loop, in_loop

_PRODUCTS = ("first", "difference", "along", "length")


@dataclass(frozen=True)
class Recorded:
    """One dense run.

    Attributes:
        frames: decoded, uint8 `(B, …)`.
        loop: that was run.
        products: of its outputs.
        errors: of the modes.
    """

    frames: np.ndarray
    loop: Loop
    products: Recording
    errors: ModeErrors

    @property
    def steps(self) -> int:
        """Steps of the loop."""
        return len(self.loop.feedback)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, to be saved."""
        loop, errors = self.loop, self.errors
        made = {
            "frames": self.frames,
            "table": loop.table,
            "feedback": loop.feedback,
            "switches": np.array(loop.switches, dtype=np.int64),
            "places": np.array(loop.places, dtype=np.float64),
            "guided": self.products.guided,
            "gram": errors.gram,
            "seconds": np.array(errors.seconds),
            "times": np.array([errors.outside, errors.dense]),
            "density": np.array(errors.density),
        }
        for name in _PRODUCTS:
            value = getattr(self.products, name)
            if value is not None:
                made[name] = value
        return made

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> Recorded:
        """What was saved."""
        loop = Loop(
            arrays["table"],
            arrays["feedback"],
            tuple(arrays["switches"].tolist()),
            tuple(arrays["places"].tolist()),
        )
        kept: dict[str, Any] = {name: arrays.get(name) for name in _PRODUCTS}
        products = Recording((), arrays["guided"], **kept)
        outside, dense = arrays["times"].tolist()
        errors = ModeErrors(
            arrays["gram"],
            tuple(arrays["seconds"].tolist()),
            outside,
            dense,
            tuple(arrays["density"].tolist()),
        )
        return cls(arrays["frames"], loop, products, errors)


@dataclass(frozen=True)
class Learnt:
    """What several recorded runs of one loop say together.

    Attributes:
        first: outputs of the first branch.
        difference: of the other branch to it, None for one call per step.
        gram: see `ModeErrors`, the mean.
        seconds: of a call, dense and in each mode.
        outside: seconds of a generation outside the transformer.
        dense: seconds of a dense generation.
        density: of each mode.
    """

    first: Trajectory
    difference: Trajectory | None
    gram: np.ndarray
    seconds: tuple[float, ...]
    outside: float
    dense: float
    density: tuple[float, ...]

    @classmethod
    def of(cls, runs: Sequence[Recorded]) -> Learnt:
        """From at least one run; seconds are the medians."""
        first, difference = in_loop(runs[0].loop, [run.products for run in runs])
        errors = [run.errors for run in runs]

        def middle(of: Callable[[ModeErrors], object]) -> np.ndarray:
            return np.asarray(np.median(np.array([of(e) for e in errors], dtype=float), axis=0))

        return cls(
            first,
            difference,
            np.mean([e.gram for e in errors], axis=0),
            tuple(middle(lambda e: e.seconds).tolist()),
            float(middle(lambda e: e.outside)),
            float(middle(lambda e: e.dense)),
            tuple(np.mean([e.density for e in errors], axis=0).tolist()),
        )

    def of_modes(self, first: int, count: int) -> np.ndarray:
        """The Gram matrix of the outputs and of some modes alone, mode 0 the first sparse one."""
        steps = self.first.steps
        kept = [*range(steps), *range(steps * (1 + first), steps * (1 + first + count))]
        return self.gram[np.ix_(kept, kept)]
