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


@dataclass(frozen=True)
class GapEnd:
    """What a computed step shows about the gap before it.

    Attributes:
        error: what the forecasts of the gap left in the latents, `(B, …)`, by their rescaling.
        width: `sigma_next - sigma` of the computed step.
        length: distance of the two computed steps, in steps.
        hypothetical: nothing was forecast; `error` is what one forecast would have left.
        feedback: `DenoisingStep.feedback` of the computed step.
    """

    error: torch.Tensor
    width: float
    length: int
    hypothetical: bool
    feedback: float = 0.0

    @property
    def correction(self) -> torch.Tensor | None:
        """What to add to the computed output so that the error is taken out again."""
        if self.hypothetical or self.width == 0.0:
            return None
        # the computed output has answered to the error already, over its own width
        return self.error * -(1.0 / self.width + self.feedback)


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
            place: index of the step.
            width: `sigma_next - sigma` of the step.
            output: what the transformer returned, `(B, …)`.
        """
        part = output.detach().float() * width
        self._sum = part if self._sum is None else self._sum.add_(part)
        self._gap.append((place, width))

    def computed(
        self, place: float, width: float, output: torch.Tensor, feedback: float = 0.0
    ) -> GapEnd | None:
        """Book the output of a computed step; None while there is nothing to compare.

        Args:
            place: index of the step.
            width: `sigma_next - sigma` of the step.
            output: what the transformer returned, `(B, …)`.
            feedback: `DenoisingStep.feedback` of the step: how far the error in the latents has
                moved the output, which is then no clean end of the gap.
        """
        end = self._end(place, width, output, feedback)
        self._nodes.insert(0, (place, output.detach().clone()))
        del self._nodes[self.order :]
        self._gap, self._sum = [], None
        return end

    def _end(
        self, place: float, width: float, output: torch.Tensor, feedback: float
    ) -> GapEnd | None:
        if not self._nodes:
            return None
        values = [v.float() for _, v in self._nodes]
        places = [p for p, _ in self._nodes]
        if self._sum is None:
            if len(places) < 2:
                return None
            guess = combine(values, newton_weights(places, place, 1))
            return GapEnd((guess - output) * width, width, 2, True)
        values.insert(0, output.detach().float())
        places.insert(0, place)
        weights = [0.0] * len(places)
        for gap_place, gap_width in self._gap:
            row = newton_weights(places, gap_place, len(places) - 1)
            weights = [w + gap_width * r for w, r in zip(weights, row, strict=True)]
        error = self._sum - combine(values, weights)
        # Moved by feedback * error, the newest output makes the error look larger by this much.
        error = error / max(1.0 - feedback * weights[0], 1.0)
        return GapEnd(error, width, round(place - places[1]), False, feedback)
