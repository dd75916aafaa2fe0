"""What PSNR to expect against dense, from the error that forecasts were seen to leave.

A computed step that ends a gap shows what the gap's forecasts left in the latents
(`caching.correction`). What becomes of that until the end depends on when it happened: early errors
decide what is drawn. So each gap's error counts by the square of the share of the loop that still
lies ahead, and PSNR falls with the logarithm of the sum. The three constants come from

    ditaccel bench calibration eval/bench/results/calibration.csv

and hold on the shipped samples; on how far they carry nothing has been measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

CEILING = 70.0  # dB: beyond, 8-bit pictures are alike but for some roundings


@dataclass(frozen=True)
class Calibration:
    """PSNR = `level` - `slope` log10(error), in dB.

    Attributes:
        level: where the error is 1.
        slope: per tenfold error.
        low: from the middle to the lower end of the interval, negative.
        high: to its upper end.
        coverage: share of the calibrating runs in the interval.
    """

    level: float
    slope: float
    low: float
    high: float
    coverage: float = 0.8

    def expect(self, error: float) -> Expectation:
        """What an error comes to."""
        middle = self.level - self.slope * math.log10(max(error, 1e-12))
        psnr, low, high = (
            min(max(level, 0.0), CEILING)
            for level in (middle, middle + self.low, middle + self.high)
        )
        return Expectation(psnr, low, high, self.coverage)


@dataclass(frozen=True)
class Expectation:
    """PSNR against dense in dB: the middle, and the ends of the interval."""

    psnr: float
    low: float
    high: float
    coverage: float

    def __str__(self) -> str:
        most = "more than " if self.psnr >= CEILING else ""
        return (
            f"{most}about {self.psnr:.0f} dB ({self.low:.0f} to {self.high:.0f} in "
            f"{100 * self.coverage:.0f} % of runs) against dense"
        )


MEASURED = Calibration(level=4.6, slope=18.1, low=-8.7, high=7.8)


@dataclass
class Leftover:
    """The error that forecasts left in the latents of one generation, as gap after gap ends.

    Forecasts are counted, so that a generation that ends in forecasts is not judged by the gaps
    before them.
    """

    _sums: dict[tuple[str, str], float | Tensor] = field(default_factory=dict)
    _open: dict[tuple[str, str], int] = field(default_factory=dict)

    def forecast(self, branch: tuple[str, str]) -> None:
        """A step was forecast."""
        self._open[branch] = self._open.get(branch, 0) + 1

    def gap_ended(
        self, branch: tuple[str, str], error: float | Tensor, began: int, total: int | None
    ) -> None:
        """A computed step ended a gap.

        Args:
            branch: transformer and guidance branch.
            error: in the latents, by their size, worst sample.
            began: index of the computed step before the gap.
            total: steps of the loop; where they are not known, nothing can be said of it.
        """
        if total is None:
            return
        self._open[branch] = 0
        ahead = (1.0 - began / total) ** 2
        self._sums[branch] = self._sums.get(branch, 0.0) + error * ahead

    @property
    def value(self) -> float | None:
        """The sum of the branch that has most; None where forecasts remain of which none is known.

        Waits for the device.
        """
        if any(self._open.values()):
            return None
        per_branch: dict[str, float] = {}
        for (_, branch), error in self._sums.items():
            per_branch[branch] = per_branch.get(branch, 0.0) + float(error)
        return max(per_branch.values(), default=0.0)
