"""The error that the forecasts of one generation left in its latents.

What becomes of such an error depends on when it happened: early ones decide what is drawn. So each
gap's error counts by the square of the share of the loop that still lies ahead.
`reports.expectation` says what PSNR to expect from the sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


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
