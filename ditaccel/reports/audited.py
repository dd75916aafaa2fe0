"""What an audit has found so far: how near accelerated outputs are to dense ones, with an interval.

The audited outputs are a random part of all, so their mean estimates that of all outputs. The
interval is Student's, which counts on no more than that the mean of several is nearly normal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import sqrt
from statistics import NormalDist, fmean, stdev
from typing import Any

# Fewer audited outputs decide nothing.
FEWEST = 3
_CONFIDENCE = 0.95
# Student's 97.5 % quantiles for so few degrees of freedom that the expansion below is too coarse.
_FEW = (12.706, 4.303, 3.182, 2.776, 2.571)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution, to a part in a thousand."""
    if freedom <= len(_FEW):
        return _FEW[freedom - 1]
    z = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom ** (i + 1) for i, term in enumerate(terms))


class Outcome(StrEnum):
    """What audited outputs say about a target for the mean of all outputs."""

    REACHED = "reached"
    MISSED = "missed"
    OPEN = "open"

    def words(self, target: float) -> str:
        """The same for people.

        Args:
            target: in dB.
        """
        return {
            Outcome.REACHED: f"above the target of {target:g} dB",
            Outcome.MISSED: f"below the target of {target:g} dB",
            Outcome.OPEN: f"too few audited to tell whether above the target of {target:g} dB",
        }[self]


@dataclass(frozen=True)
class Audited:
    """PSNR of audited outputs to dense ones.

    Attributes:
        levels: of each output in dB.
    """

    levels: Sequence[float]

    @property
    def mean(self) -> float:
        """Their mean in dB."""
        return fmean(self.levels)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the mean of all outputs is with 95 % confidence; None of a single one."""
        count = len(self.levels)
        if count < 2:
            return None
        half = student(count - 1) * stdev(self.levels) / sqrt(count)
        return self.mean - half, self.mean + half

    def misses(self, target: float) -> bool:
        """Whether the mean of all outputs is below a level, with that confidence."""
        found = self.interval
        return found is not None and len(self.levels) >= FEWEST and found[1] < target

    def outcome(self, target: float) -> Outcome:
        """Whether the mean of all outputs reaches a level, as far as can be told."""
        if self.misses(target):
            return Outcome.MISSED
        found = self.interval
        sure = found is not None and len(self.levels) >= FEWEST and found[0] >= target
        return Outcome.REACHED if sure else Outcome.OPEN

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        low, high = self.interval or (None, None)
        return {
            "n": len(self.levels),
            "mean": self.mean,
            "low": low,
            "high": high,
            "worst": min(self.levels),
        }

    def __str__(self) -> str:
        found = self.interval
        within = "" if found is None else f" ({found[0]:.1f} to {found[1]:.1f})"
        many = "" if len(self.levels) == 1 else f", worst {min(self.levels):.1f} dB"
        return f"{self.mean:.1f} dB to dense{within}{many}, of {len(self.levels)} audited"
