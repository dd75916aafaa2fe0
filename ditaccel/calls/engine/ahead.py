"""The latents of the next steps, foreseen from those that the transformer was given so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.denoising.response import Response
from ...core.denoising.schedule import Schedule


def outputs_behind(inputs: Mapping[int, Tensor], response: Response, index: int) -> list[Tensor]:
    """The outputs that the scheduler was given at steps 0 to `index - 1`, all branches combined.

    Each latent is a weighted sum of these and of the first latents (`Response`), so that the
    latents themselves tell them: guidance need not be known.

    Args:
        inputs: step -> latents as the transformer was given them, from 0 to `index`.
        response: of the loop.
        index: of the present step.
    """
    latents = [_wide(inputs[j]) / float(response.input_scale[j]) for j in range(index + 1)]
    found: list[Tensor] = []
    for j in range(index):
        weights = response.latents[j + 1]
        known = float(weights[-1]) * latents[0]
        for weight, output in zip(weights, found, strict=False):
            known = known + float(weight) * output
        found.append((latents[j + 1] - known) / float(weights[j]))
    return found


def foreseen(
    inputs: Mapping[int, Tensor], schedule: Schedule, index: int, count: int
) -> list[Tensor]:
    """The latents that the transformer will be given at the next `count` steps.

    The combined output is continued in a straight line through its last two values, along the
    noise level, and the scheduler's own weights make latents of it. Where these are not known (a
    scheduler that draws noise or clips, a part of a loop), the latents themselves are continued.
    What has not changed between the last two steps (given images, masks) stays.

    Args:
        inputs: step -> latents as they were given; all steps up to `index`, or the last two.
        schedule: of the loop.
        index: of the present step.
        count: how many.
    """
    now, former = _wide(inputs[index]), _wide(inputs[index - 1])
    response = schedule.response
    if response is None or any(j not in inputs for j in range(index)) or index < 2:
        made = [now + _ratio(schedule, index, j) * (now - former) for j in range(1, count + 1)]
    else:
        outputs = outputs_behind(inputs, response, index)
        last, before = outputs[-1], outputs[-2]
        made = []
        first = _wide(inputs[0]) / float(response.input_scale[0])
        for j in range(index + 1, index + count + 1):
            outputs.append(last + _ratio(schedule, index - 1, j - index) * (last - before))
            weights = response.latents[j]
            latents = float(weights[-1]) * first
            for weight, output in zip(weights, outputs, strict=False):
                latents = latents + float(weight) * output
            made.append(latents * float(response.input_scale[j]))
    same = now == former
    return [torch.where(same, now, each).to(inputs[index].dtype) for each in made]


def _wide(latents: Tensor) -> Tensor:
    """Latents in float32 at least: sums of many terms would lose too much in half precision."""
    return latents.to(torch.promote_types(latents.dtype, torch.float32))


def _ratio(schedule: Schedule, index: int, ahead: int) -> float:
    """How far `ahead` steps from `index` lead, by the step before it; in the noise level."""
    levels = [schedule.sigma(index + k) for k in (-1, 0, ahead)]
    if any(level is None for level in levels):
        return float(ahead)
    before, now, later = (float(level) for level in levels if level is not None)
    return (later - now) / (now - before) if now != before else float(ahead)


def timesteps_as_given(
    given: Mapping[int, float], schedule: Schedule, index: int, count: int, rounding: float = 0.0
) -> list[float] | None:
    """The timesteps that the transformer will be given at the next `count` steps.

    Families hand a scheduler's timesteps over as they are, scaled or reversed. Where none of the
    known readings fits, the last two tell the line; rounded to half precision, they cannot tell it
    well. EDM's timesteps come as `sigma / (1 + sigma)`.

    Args:
        given: step -> timestep as it was given, of this step and the one before.
        schedule: of the loop.
        index: of the present step.
        count: how many.
        rounding: relative error of what was given, by its dtype.

    Returns:
        None where that is not known.
    """
    if schedule.offset is None or any(not match.scale for match in schedule.readings):
        levels = [schedule.sigma(index + j) for j in range(count + 1)]
        if any(level is None for level in levels):
            return None
        made = [level / (1.0 + level) for level in levels if level is not None]
        return made[1:] if abs(made[0] - given[index]) < 1e-3 else None
    values = schedule.values[schedule.offset :]
    for match in schedule.readings:
        made = [(values[index + j] - match.shift) / match.scale for j in range(-1, count + 1)]
        known = zip(made, (given[index - 1], given[index]), strict=False)
        if all(abs(each - true) <= max(rounding, 1e-6) * abs(true) for each, true in known):
            return made[2:]
    step = values[index] - values[index - 1]
    if not step:
        return None
    scale = (given[index] - given[index - 1]) / step
    return [given[index] + scale * (values[index + j] - values[index]) for j in range(1, count + 1)]


def repeated(value: Any, batch: int, count: int) -> Any:
    """An argument of a call for `count` calls side by side.

    Args:
        value: tensors and lists with one entry per sample are repeated, also within a mapping; so
            are the tensors of a list or tuple with one tensor per layer.
        batch: samples of a call.
        count: of calls.
    """
    if isinstance(value, Tensor):
        fits = value.ndim > 0 and value.shape[0] == batch
        return torch.cat([value] * count) if fits else value
    if isinstance(value, (list, tuple)):
        batches = [isinstance(e, Tensor) and e.ndim > 1 and len(e) == batch for e in value]
        if all(batches) and (len(value) != batch or isinstance(value, tuple)):  # one per layer
            return type(value)([repeated(each, batch, count) for each in value])
        return value * count if isinstance(value, list) and len(value) == batch else value
    if isinstance(value, dict):
        return {key: repeated(each, batch, count) for key, each in value.items()}
    return value
