"""What may be skipped in a loop of few steps (distilled models), where nothing can be measured.

Methods that learn from a run what they may skip have no time for it in 4 to 12 steps. What holds up
there is a mask: the last step and every second one before it reuse the output before them. To
compare it with as many steps fewer:

    ditaccel eval samples/models/shapes-flux-few --steps 8 --config balanced --fewer 6 --out out
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.denoising.tracker import DenoisingStep
from ...core.reasons import Reason
from .gate import Gate
from .state import BranchState, Verdict

# Steps of a loop that is one of few.
MOST, LEAST = 12, 4


def skipped_of_few(total: int | None, most: int) -> tuple[int, ...]:
    """The steps that a loop of few steps skips.

    Args:
        total: steps of the loop.
        most: how many may be skipped.

    Returns:
        Their indices, falling; none in a loop of another length. At least half of the steps, and
        one more, are computed.
    """
    if total is None or not LEAST <= total <= MOST:
        return ()
    number = min(most, total // 2 - 1)
    return tuple(total - 1 - 2 * i for i in range(number))


@dataclass
class FewStepsGate(Gate):
    """Skips the last step of a loop and every second one before it.

    Args:
        most: how many are skipped.
        in_place_of: the gate of longer loops.
    """

    most: int
    in_place_of: Gate

    by_place = True

    def check(self, step: DenoisingStep) -> None:
        """Where a loop turns out to be of another length, there is no mask for it."""
        if step.total is None:
            self.in_place_of.check(step)

    def skips_nothing(self, total: int | None) -> bool:
        return not skipped_of_few(total, self.most)

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        if step.index in skipped_of_few(step.total, self.most):
            return Verdict(True, Reason.NOT_IN_MASK)
        return Verdict(False, Reason.IN_MASK)
