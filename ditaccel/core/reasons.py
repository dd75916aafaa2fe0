"""Why a step was computed or forecast, as data: no decision is taken from words for people."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Reason(StrEnum):
    """What decided over one transformer call; the value is its name in files.

    A branch that follows another one has the reason of the branch that it follows.
    """

    WARM_UP = "warm-up"
    LAST_STEPS = "last step"
    FIRST_OF_EXPERT = "first steps of another transformer"
    LAST_OF_EXPERT = "last step before another transformer"
    NO_HISTORY = "no history yet"
    WITH_ITS_STEP = "as the first stage of its step"
    LONG_GAP = "too many forecasts in a row"
    SPENT = "no forecasts left"
    SCHEDULED = "scheduled"
    BETWEEN = "between computed steps"
    IN_MASK = "in the mask"
    NOT_IN_MASK = "not in the mask"
    GAP_REACHED = "gap reached"
    WITHIN_GAP = "within the gap"
    ABOVE_THRESHOLD = "error above threshold"
    BELOW_THRESHOLD = "error below threshold"
    NON_FINITE = "non-finite features"
    DIFFERENCE = "difference to the first branch"
    MORE_THAN_LATENTS = "it returns more than latents"
    FIRST_BLOCK_LEFT_OUT = "the first block did not run"
    NO_METHOD = "no caching method"
    NO_LOOP = "not a call of a denoising loop"
    OTHER = "other"

    @property
    def forced(self) -> bool:
        """Whether the place in the loop decided, and nothing that was seen."""
        return self in _FORCED


_FORCED = (
    Reason.WARM_UP,
    Reason.LAST_STEPS,
    Reason.FIRST_OF_EXPERT,
    Reason.LAST_OF_EXPERT,
)
_ADVICE = {
    Reason.WARM_UP: "use more steps, or a smaller warmup",
    Reason.LAST_STEPS: "use more steps, or a smaller final",
    Reason.FIRST_OF_EXPERT: "use more steps, or a lower order",
    Reason.LAST_OF_EXPERT: "use more steps, or a smaller final",
    Reason.NO_HISTORY: "use more steps: a forecast needs computed ones before it",
    Reason.LONG_GAP: "raise max_consecutive",
    Reason.SPENT: "raise max_cached or max_accumulated",
    Reason.SCHEDULED: "raise the interval",
    Reason.IN_MASK: "leave steps out of the mask",
    Reason.GAP_REACHED: "raise the tolerance, use more steps, or leave this model uncached",
    Reason.ABOVE_THRESHOLD: "raise the threshold, use more steps, or leave this model uncached",
    Reason.NON_FINITE: "check weights and dtype: no threshold helps here",
    Reason.MORE_THAN_LATENTS: "use target='hidden'",
    Reason.NO_LOOP: "call the transformer step by step under torch.no_grad()",
    Reason.FIRST_BLOCK_LEFT_OUT: "leave layers in, or take a method with target='output'",
}


def deciding(causes: Mapping[Reason, int]) -> Reason:
    """The cause that a change can act on, of those of steps that were computed.

    What the place in the loop decided comes last: changing it does not help where something else
    has decided as well.

    Args:
        causes: number of steps per cause, at least one.
    """
    free = {cause: n for cause, n in causes.items() if not cause.forced} or causes
    return max(free, key=lambda cause: free[cause])


def advice(cause: Reason) -> str:
    """What to do where nothing was skipped for this cause."""
    return _ADVICE.get(cause, "use more steps, or another method")
