"""What recorded dense runs say of one quantity: its products, and what it does to the latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.denoising.response import Probed
from ..core.denoising.tracker import DenoisingStep
from ..errors import UnsupportedError
from .recording import Recording
from .schedule_search import Trajectory

_OTHERWISE = "use a preset, such as 'balanced', which needs no schedule"


@dataclass(frozen=True)
class Loop:
    """A denoising loop of S steps, without its outputs.

    Attributes:
        table: change of the latents before each step and of the last ones per change of each
            output, `(S + 1, S)`.
        feedback: `DenoisingStep.feedback` of each step, `(S,)`.
        switches: first steps of further transformers.
        places: of the steps on the forecasts' coordinate, `(S,)`; empty for their indices.
    """

    table: np.ndarray
    feedback: np.ndarray
    switches: tuple[int, ...]
    places: tuple[float, ...]

    @classmethod
    def of(cls, recording: Recording) -> Loop:
        """The loop of a recording.

        Raises:
            UnsupportedError: the scheduler draws noise, clips, or is not followed.
        """
        steps, names = recording.steps, recording.names
        levels = [s.log_snr for s in steps]
        return cls(
            response_of(steps, len(recording.guided[0])),
            np.array([s.feedback for s in steps]),
            tuple(i for i in range(1, len(names)) if names[i] != names[i - 1]),
            tuple(x for x in levels if x is not None) if None not in levels else (),
        )


def trajectories_of(recordings: Sequence[Recording]) -> tuple[Trajectory, Trajectory | None]:
    """Return the first branch's trajectory, and that of the difference to it.

    Where the output is guided inside one call there is only one trajectory, of what the scheduler
    got. The response of the difference holds its weight in the guided output, step by step, so that
    guidance scales may differ between transformers or change on the way.

    Raises:
        UnsupportedError: the scheduler draws noise, clips, or is not followed.
    """
    return in_loop(Loop.of(recordings[0]), recordings)


def in_loop(loop: Loop, recordings: Sequence[Recording]) -> tuple[Trajectory, Trajectory | None]:
    """`trajectories_of` where the loop is known already."""
    table = loop.table

    def trajectory(grams: list[np.ndarray], response: np.ndarray) -> Trajectory:
        # The mean: charging each gap by the sample that suffers most was tried, and which samples
        # come out wrong under an unseen prompt did not follow it.
        mean = np.concatenate(grams).mean(0)
        return Trajectory(mean, response, loop.feedback, loop.switches, loop.places)

    first = [r.first for r in recordings if r.first is not None]
    difference = [r.difference for r in recordings if r.difference is not None]
    if len(first) < len(recordings) or len(difference) < len(recordings):
        return trajectory([r.guided for r in recordings], table), None
    # guided = first + weight * difference, whatever the guidance is called
    along = sum(r.along for r in recordings if r.along is not None)
    length = sum(r.length for r in recordings if r.length is not None)
    weights = along / np.maximum(length, 1e-20)
    return trajectory(first, table), trajectory(difference, table * weights)


def response_of(steps: Sequence[DenoisingStep], outputs: int) -> np.ndarray:
    """Change of the latents before each step, as the transformer gets them, and of the last ones.

    Args:
        steps: of a loop.
        outputs: how many the scheduler was given in it.

    Returns:
        `(S + 1, S)`.

    Raises:
        UnsupportedError: the scheduler draws noise, clips, or is not followed.
    """
    schedule, response = steps[0].schedule, steps[0].response
    if schedule is None or schedule.mixed or schedule.converted:
        raise UnsupportedError(
            "tune does not know what outputs do to the latents here: the pipeline makes something "
            "else of them for the scheduler (EDM, predicted pictures), or there is no scheduler; "
            f"{_OTHERWISE}"
        )
    if response is None:
        probed = schedule.probed
        why = "is not followed" if probed is None else _WHY[probed]
        raise UnsupportedError(
            f"tune needs a deterministic scheduler, whose steps are linear; this one {why}; "
            f"{_OTHERWISE}"
        )
    if not response.calls == len(steps) == outputs:
        raise UnsupportedError(
            f"tune has seen {len(steps)} steps and {outputs} outputs of a loop in which the "
            f"scheduler takes {response.calls}; {_OTHERWISE}"
        )
    scale = np.append(response.input_scale, 1.0)[:, None]
    table: np.ndarray = response.latents[:, :-1] * scale
    return table


_WHY = {
    Probed.STOCHASTIC: "draws noise",
    Probed.NONLINEAR: "clips or thresholds",
    Probed.FAILED: "cannot be stepped by itself",
    Probed.LINEAR: "is not followed",
}
