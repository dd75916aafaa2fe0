"""Does a run leave what tuning has seen? The errors of its forecasts beside those of the tuning.

A computed step that ends a gap shows what the gap's forecasts left in the latents
(`caching.engine.correction`). A tuned config holds, per such step, the least, middle and largest of
these errors over the tuning's runs. Another model, scheduler or size, or prompts of another kind,
may show in them before anybody compares pictures. Nothing is computed for it: the errors are there.
Weights that differ little (a LoRA) may well show nothing; those are compared by their hash.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

Profile = Sequence[Sequence[float]]

# How far beyond the tuning's errors an error is still theirs, and the share of steps beyond that
# from which on a run has left them: a few runs (less than `_FEW`) do not show the range of a model.
_MARGIN, _MARGIN_OF_FEW, _FEW = 1.5, 3.0, 6
_SHARE = 1 / 3


@dataclass(eq=False)
class Watched:
    """What is written down of the newest generation where a config is watched.

    Attributes:
        errors: step -> error that the gap which it ended has left in the latents, first branch.
        latents: shape of one sample's latents.
        steps: of the loop.
    """

    errors: dict[int, Any] = field(default_factory=dict)
    latents: tuple[int, ...] = ()
    steps: int | None = None

    def numbers(self) -> dict[int, float]:
        """The errors as numbers; waits for the device."""
        return {step: float(error) for step, error in self.errors.items()}


@dataclass(frozen=True)
class Drift:
    """How a generation compares with the profile of its config.

    Attributes:
        compared: steps that both have.
        above: those of them with an error above the tuning's.
        below: those with one below.
        ratio: the errors by the middle ones of the tuning, the median.
    """

    compared: int
    above: int
    below: int
    ratio: float

    @property
    def has_left(self) -> bool:
        """Whether the run has left what tuning has seen."""
        return self.above + self.below > max(1, _SHARE * self.compared)

    def __str__(self) -> str:
        outside = max(self.above, self.below)
        side = "above" if self.above >= self.below else "below"
        if not self.has_left:
            return f"the errors of the forecasts are those of the tuning ({self.ratio:.2g} times)"
        return (
            f"this run has left what the config was tuned on: at {outside} of {self.compared} "
            f"steps the error of the forecasts is {side} the tuning's ({self.ratio:.2g} times its "
            "middle); is it another model (a LoRA), scheduler, size or kind of prompt? Tune again, "
            "or measure the quality (ditaccel.audit)"
        )


def profile_of(runs: Sequence[dict[int, float]]) -> tuple[tuple[float, ...], ...]:
    """The profile over several runs: `(step, low, middle, high)` of the steps that all have."""
    steps = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    rows = []
    for step in steps:
        errors = sorted(run[step] for run in runs)
        if all(math.isfinite(error) and error > 0 for error in errors):
            rows.append((float(step), errors[0], median(errors), errors[-1]))
    return tuple(rows)


def drift_of(profile: Profile, errors: dict[int, float], runs: int = _FEW) -> Drift | None:
    """Compare a generation with a profile of so many runs; None where they share no step."""
    margin = _MARGIN if runs >= _FEW else _MARGIN_OF_FEW
    rows = [(low, middle, high, errors[int(s)]) for s, low, middle, high in profile if s in errors]
    if not rows:
        return None
    return Drift(
        len(rows),
        sum(not error <= margin * high for _, _, high, error in rows),
        sum(error < low / margin for low, _, _, error in rows),
        median(error / middle for _, middle, _, error in rows),
    )
