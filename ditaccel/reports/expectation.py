"""What PSNR to expect against dense, from the error that forecasts were seen to leave.

A computed step that ends a gap shows what the gap's forecasts left in the latents
(`caching.engine.correction`), and `core.denoising.leftover` sums these errors over a generation.
PSNR falls with the logarithm of the sum. The three constants come from

    ditaccel bench calibration eval/bench/results/calibration.csv

and hold on the shipped samples; whether they hold elsewhere has not been measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
