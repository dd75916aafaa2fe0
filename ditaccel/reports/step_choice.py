"""How many steps a pipeline's call runs, and why: the choice of `steps=` as data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Why(StrEnum):
    """Why a call runs as many steps as it does.

    Attributes:
        NUMBER: the config names their number.
        SHARE: the config, or the family's preset, names a share of them.
        FEWER: the call asks for no more than the number that the config names.
        ALL: the share is so near 1 that it makes no difference.
        FEW: there are few (20 and fewer), and each counts.
        NO_SHARE: no share was measured for the family.
        OWN_LEVELS: the call gives noise levels of its own.
        MADE_FOR: the method was made for a number of steps.
        NOT_ASKED: the call names no number of steps.
        NOT_TAKEN: the pipeline's call takes no number of steps.
    """

    NUMBER = "as the config says"
    SHARE = "the share that the config, or the family's preset, names"
    FEWER = "the call asks for no more than the config's number"
    ALL = "the share of them is all"
    FEW = "they are few, so that each counts"
    NO_SHARE = "no share of the steps was measured for this family"
    OWN_LEVELS = "the call gives its own noise levels"
    MADE_FOR = "the method was made for its own number of steps"
    NOT_ASKED = "the call names no number of steps"
    NOT_TAKEN = "this pipeline's call takes no num_inference_steps"


@dataclass(frozen=True)
class StepChoice:
    """How many steps a call runs.

    Attributes:
        asked: steps that the call asked for, None where it named no number.
        run: steps that it was given, None where it was left alone.
        why: why so many.
    """

    asked: int | None
    run: int | None
    why: Why

    def __str__(self) -> str:
        if self.run is not None:
            of = "" if self.asked is None else f" of the {self.asked} asked for"
            return f"{self.run}{of} are run ({self.why.value})"
        asked = "as many as asked for" if self.asked is None else f"all {self.asked}"
        return f"{asked} are run ({self.why.value})"
