"""Which steps are whose, where two transformers share one denoising loop (the experts of Wan 2.2).

The pipeline says it before the loop begins: `boundary_ratio` is the share of the training timesteps
below which `transformer_2` makes the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def boundary_of(pipe: Any) -> float | None:
    """The timestep below which a pipeline's second transformer makes the steps, None without one.

    Args:
        pipe: a pipeline, or None.
    """
    both = all(getattr(pipe, name, None) is not None for name in ("transformer", "transformer_2"))
    ratio = getattr(getattr(pipe, "config", None), "boundary_ratio", None)
    if not both or not isinstance(ratio, (int, float)):
        return None
    options = getattr(getattr(pipe, "scheduler", None), "config", None) or {}
    return float(ratio) * options.get("num_train_timesteps", 1000)


def switch_of(pipe: Any, timesteps: Sequence[float]) -> int | None:
    """The step at which the second transformer takes over; None where one makes all steps.

    Args:
        pipe: the pipeline that calls, or None.
        timesteps: of the loop's steps, as the scheduler has them.
    """
    boundary = boundary_of(pipe)
    if boundary is None:
        return None
    below = [index for index, timestep in enumerate(timesteps) if timestep < boundary]
    return below[0] if below and below[0] > 0 else None
