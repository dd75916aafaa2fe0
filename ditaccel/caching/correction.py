"""Gap correction: what a computed step shows about the forecasts before it is made good at once.

A forecast extrapolates; once the next step is computed, the same gap can be interpolated, which is
several times more exact (Adams-Moulton against Adams-Bashforth: Hairer, Norsett, Wanner, Solving
Ordinary Differential Equations I, section III.1). Schedulers such as DDIM and flow-matching Euler
add `(sigma_next - sigma) * output` to the (rescaled) latents in every step, so the error that the
gap left in the latents is a known sum, and adding that sum, divided by the computed step's own
`sigma_next - sigma`, to the computed output takes it out again. No block runs for that.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .forecast import combine, newton_weights


@dataclass
class GapCorrector:
    """Follows the outputs of one guidance branch.

    Args:
        order: degree of the interpolation; 2 uses the computed steps at both ends of the gap and
            the one before it.
    """

    order: int = 2
    _nodes: list[tuple[float, torch.Tensor]] = field(default_factory=list)
    _gap: list[tuple[float, float]] = field(default_factory=list)
    _sum: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = [v for _, v in self._nodes] + ([] if self._sum is None else [self._sum])
        return sum(v.numel() * v.element_size() for v in held)

    def forecast(self, place: float, width: float, output: torch.Tensor) -> None:
        """Book the output of a forecast step.

        Args:
            place: where the step lies on the forecasts' coordinate.
            width: `sigma_next - sigma` of the step.
            output: what the transformer returned, `(B, …)`.
        """
        part = output.detach().float() * width
        self._sum = part if self._sum is None else self._sum.add_(part)
        self._gap.append((place, width))

    def computed(self, place: float, width: float, output: torch.Tensor) -> torch.Tensor | None:
        """Book the output of a computed step; returns what to add to it, None for nothing."""
        self._nodes.insert(0, (place, output.detach().clone()))
        correction = None
        if self._gap and self._sum is not None and len(self._nodes) > 1 and width != 0.0:
            places = [p for p, _ in self._nodes]
            weights = [0.0] * len(places)
            for gap_place, gap_width in self._gap:
                row = newton_weights(places, gap_place, len(places) - 1)
                weights = [w + gap_width * r for w, r in zip(weights, row, strict=True)]
            interpolated = combine([v.float() for _, v in self._nodes], weights)
            correction = interpolated.sub_(self._sum).div_(width)
        del self._nodes[self.order :]
        self._gap, self._sum = [], None
        return correction
