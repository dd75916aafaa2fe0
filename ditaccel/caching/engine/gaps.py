"""Gaps between computed steps: what a computed step shows about the forecasts before it.

A forecast extrapolates; once the next step is computed, the same gap can be interpolated, which is
several times more exact (Adams-Moulton against Adams-Bashforth: Hairer, Norsett, Wanner, Solving
Ordinary Differential Equations I, section III.1). The last latents of a loop are a weighted sum of
all outputs (`core.denoising.response`), so the error that the gap leaves there is a known sum, and
adding that sum, divided by the computed step's own weight, to the computed output takes it out
again. No block runs for that.

Why the last latents, and not the next: a multistep scheduler remembers the forecast outputs, and no
single vector takes their error out of all latents that follow. Out of the next ones it would leave
more than half of it in the end; out of the last ones, it is out as soon as the memory has passed,
which is before the transformer sees the latents again where the next steps are forecast.

A computed output has seen the error before it was taken out, and has answered to it. What later
forecasts and interpolations carry on must be free of that answer, else it bends the next gap: with
noise prediction (`DenoisingStep.feedback`), where the answer is large, that cost more than the
correction gained over gaps of more than three steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .forecast import combine, newton_weights

# Distance of computed steps up to which an error is taken out of outputs that have answered to it.
# Measured with noise prediction on DDIM: a gain at 2 and 3, a loss from 4 on.
LONGEST_WITH_FEEDBACK = 3


@dataclass(frozen=True)
class GapEnd:
    """What a computed step shows about the gap before it.

    Attributes:
        error: what the forecasts of the gap leave in the last latents, `(B, …)`.
        weight: of the computed step's output in the last latents (`Response.end`).
        length: distance of the two computed steps, in steps.
        hypothetical: nothing was forecast; `error` is what one forecast would have left.
        feedback: `DenoisingStep.feedback` of the computed step.
    """

    error: torch.Tensor
    weight: float
    length: int
    hypothetical: bool
    feedback: float = 0.0

    @property
    def is_corrected(self) -> bool:
        """Whether the error can be taken out again."""
        if self.hypothetical or self.weight == 0.0:
            return False
        return self.feedback <= 0.0 or self.length <= LONGEST_WITH_FEEDBACK

    @property
    def correction(self) -> torch.Tensor | None:
        """What to add to the computed output so that the error is taken out again."""
        if not self.is_corrected:
            return None
        # the computed output has answered to the error already, over its own weight
        return self.error * -(1.0 / self.weight + self.feedback)

    @property
    def answer(self) -> torch.Tensor | None:
        """What the error did to the computed output, where a correction takes the error out."""
        if self.feedback == 0.0 or not self.is_corrected:
            return None
        return self.error * self.feedback


@dataclass
class GapCorrector:
    """Follows the outputs of one guidance branch.

    Args:
        order: degree of the interpolation; 2 uses the computed steps at both ends of the gap and
            the one before it.
    """

    order: int = 2
    _nodes: list[tuple[float, torch.Tensor]] = field(default_factory=list)
    _answers: list[tuple[float, torch.Tensor | None]] = field(default_factory=list)
    _gap: list[tuple[float, float]] = field(default_factory=list)
    _sum: torch.Tensor | None = None
    _index: int = -1

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = [v for _, v in (*self._nodes, *self._answers)] + [self._sum]
        return sum(v.numel() * v.element_size() for v in held if v is not None)

    def forecast(
        self, place: float, weight: float, output: torch.Tensor, order: int = 1
    ) -> torch.Tensor | None:
        """Book the output of a forecast step; return what to add to it, None for nothing.

        Args:
            place: of the step on the forecasts' coordinate (`BranchState.place`).
            weight: of the output in the last latents (`Response.end`).
            output: what the transformer returned, `(B, …)`.
            order: order of the forecast; beyond 1 it is taken for 1.
        """
        freed = self._freed(place, order)
        part = output.detach().float() * weight
        if freed is not None:
            part.add_(freed, alpha=weight)
        self._sum = part if self._sum is None else self._sum.add_(part)
        self._gap.append((place, weight))
        return freed

    def _freed(self, place: float, order: int) -> torch.Tensor | None:
        """What a forecast must be given to be free of the answers of the outputs it is made of."""
        places = [p for p, _ in self._answers]
        weights = newton_weights(places, place, min(order, len(places) - 1)) if places else []
        pairs = [(w, a) for w, (_, a) in zip(weights, self._answers, strict=True) if a is not None]
        return combine([a for _, a in pairs], [-w for w, _ in pairs]) if pairs else None

    def computed(
        self,
        place: float,
        weight: float,
        output: torch.Tensor,
        feedback: float = 0.0,
        corrects: bool = True,
        index: int | None = None,
    ) -> GapEnd | None:
        """Book the output of a computed step; None while there is nothing to compare.

        Args:
            place: of the step on the forecasts' coordinate (`BranchState.place`).
            weight: of the output in the last latents (`Response.end`).
            output: what the transformer returned, `(B, …)`.
            feedback: `DenoisingStep.feedback` of the step: how far the error in the latents has
                moved the output, which is then no clean end of the gap.
            corrects: whether the caller takes the error out; else the answer to it is right.
            index: of the step, None where places are indices.
        """
        index = round(place) if index is None else index
        end = self._end(place, weight, output, feedback, index)
        self._index = index
        answer = end.answer if corrects and end is not None else None
        kept = output.detach().clone() if answer is None else output.detach() - answer
        self._nodes.insert(0, (place, kept.to(output.dtype)))
        self._answers.insert(0, (place, answer))
        del self._nodes[self.order :], self._answers[2:]
        self._gap, self._sum = [], None
        return end

    def _end(
        self, place: float, weight: float, output: torch.Tensor, feedback: float, index: int
    ) -> GapEnd | None:
        if not self._nodes:
            return None
        values = [v.float() for _, v in self._nodes]
        places = [p for p, _ in self._nodes]
        if self._sum is None:
            if len(places) < 2:
                return None
            guess = combine(values, newton_weights(places, place, 1))
            return GapEnd((guess - output) * weight, weight, 2, True)
        values.insert(0, output.detach().float())
        places.insert(0, place)
        weights = [0.0] * len(places)
        for gap_place, gap_weight in self._gap:
            row = newton_weights(places, gap_place, len(places) - 1)
            weights = [w + gap_weight * r for w, r in zip(weights, row, strict=True)]
        error = self._sum - combine(values, weights)
        # Moved by feedback * error, the newest output makes the error look larger by this much.
        error = error / max(1.0 - feedback * weights[0], 1.0)
        return GapEnd(error, weight, index - self._index, False, feedback)
