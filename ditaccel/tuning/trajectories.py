"""What recorded dense runs say of one quantity: its products, and what it does to the latents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.denoising.response import Probed
from ..core.denoising.tracker import DenoisingStep
from ..errors import UnsupportedError
from .recording import Recording
from .schedule_search import Trajectory

_OTHERWISE = "use a preset, such as 'balanced', which needs no schedule"


def trajectories_of(recordings: Sequence[Recording]) -> tuple[Trajectory, Trajectory | None]:
    """Return the first branch's trajectory, and that of the difference to it.

    Where the output is guided inside one call there is only one trajectory, of what the scheduler
    got. The response of the difference holds its weight in the guided output, step by step, so that
    guidance scales may differ between transformers or change on the way.

    Raises:
        UnsupportedError: the scheduler draws noise, clips, or is not followed.
    """
    steps = recordings[0].steps
    table = response_of(steps, len(recordings[0].guided[0]))
    feedback = np.array([s.feedback for s in steps])
    names = recordings[0].names
    switches = tuple(i for i in range(1, len(names)) if names[i] != names[i - 1])
    levels = [s.log_snr for s in steps]
    places = tuple(x for x in levels if x is not None) if None not in levels else ()

    def trajectory(grams: list[np.ndarray], response: np.ndarray) -> Trajectory:
        # The mean: charging each gap by the sample that suffers most was tried, and which samples
        # come out wrong under an unseen prompt did not follow it.
        return Trajectory(np.concatenate(grams).mean(0), response, feedback, switches, places)

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
