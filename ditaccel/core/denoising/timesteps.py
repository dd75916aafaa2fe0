"""The timestep argument of a transformer call, read once for all that is decided from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Reading:
    """A timestep argument, looked at once.

    Attributes:
        level: the step's timestep. Tokens that are given have a small one or 0 (Wan 2.2 5B), so
            it is the largest.
        progress: what tells steps apart: the mean, which moves on although some frames still wait
            at the largest timestep (diffusion forcing).
        each: timesteps of the tokens or frames of one sample, None where they have none of their
            own.
        moved: the farthest that one of them is from the call before.
        turned_back: whether one of them went back.
        mixed: whether samples of the batch are at different timesteps.
    """

    level: float
    progress: float
    each: torch.Tensor | None = None
    moved: float = 0.0
    turned_back: bool = False
    mixed: bool = False


def read(timestep: Any, before: Reading | None = None, direction: int = 0) -> Reading:
    """Read a timestep argument; waits for the device once.

    Args:
        timestep: a number, or a tensor `()`, `(B,)` or `(B, …)`.
        before: what was read at the call before.
        direction: 1 or -1 where timesteps have risen or fallen so far, else 0.
    """
    if not isinstance(timestep, torch.Tensor):
        return Reading(float(timestep), float(timestep))
    if timestep.ndim < 2:
        values = timestep.detach().float()
        if values.numel() < 2:
            level = float(values)
            return Reading(level, level)
        least, level = torch.stack(torch.aminmax(values)).tolist()
        return Reading(level, level, mixed=least != level)
    each = timestep.detach()[0].flatten().float().clone()
    change = torch.zeros_like(each)
    if before is not None and before.each is not None and before.each.shape == each.shape:
        change = each - before.each
    # more than what schedules lose by rounding to whole timesteps
    back = (change * -direction > 5e-3 * each.abs().max()).any().float()
    figures = [each.max(), each.min(), each.mean(), change.abs().max(), back]
    level, least, mean, moved, turned = torch.stack(figures).tolist()
    return Reading(level, level if level == least else mean, each, moved, turned > 0)


def level_of(timestep: Any) -> float:
    """What tells steps apart in a timestep argument."""
    return read(timestep).progress
