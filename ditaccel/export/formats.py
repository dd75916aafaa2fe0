"""A schedule in the form that an engine reads: cache-dit, diffusers, or plain JSON for others."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import yaml

from .schedule import ExportedSchedule

# Error that `MagCacheConfig` allows, and the ratio that goes beyond it in one step.
_ALLOWED, _BEYOND = 0.06, 2.0


def to_cache_dit(schedule: ExportedSchedule) -> tuple[str, list[str]]:
    """The YAML that `cache_dit.load_configs` reads, and what differs there.

    The first block runs on every step, as cache-dit's blocks of the kind `Fn` do.
    """
    cache: dict[str, Any] = {
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "max_warmup_steps": 1,
        "residual_diff_threshold": 1.0,
        "num_inference_steps": schedule.steps,
        "steps_computation_mask": schedule.mask,
        "steps_computation_policy": "static",
    }
    if schedule.order:
        cache |= {"enable_taylorseer": True, "taylorseer_order": schedule.order}
    notes = ["the first block runs on skipped steps too, and the residual of the others is reused"]
    if schedule.order:
        notes[0] = "the first block runs on skipped steps too, and the others' residual is forecast"
    notes.append(
        "for a model that cache-dit does not know to call the transformer per guidance branch, add "
        "enable_separate_cfg: true where there are two calls per step"
    )
    head = f"# {schedule.label}: {len(schedule.computed)} of {schedule.steps} steps are computed\n"
    body = yaml.safe_dump({"cache_config": cache}, sort_keys=False, default_flow_style=None)
    return head + body, notes


def to_diffusers(schedule: ExportedSchedule) -> tuple[str, list[str]]:
    """JSON with the arguments of `diffusers.MagCacheConfig`, and what differs there.

    No cache of diffusers takes a list of steps. MagCache skips a step while the ratios of the
    residual's size, multiplied up, stay near 1: ratios of 1 at skipped steps and far from 1 at
    computed ones make it compute just these. It reuses the residual over all blocks.
    """
    ratios = [_BEYOND if one else 1.0 for one in schedule.mask]
    arguments = {
        "threshold": _ALLOWED,
        "max_skip_steps": max(schedule.longest_gap, 1),
        "retention_ratio": 0.0,
        "num_inference_steps": schedule.steps,
        "mag_ratios": ratios,
    }
    notes = [
        "no cache of diffusers takes a list of steps; these ratios make MagCache compute just these"
    ]
    if schedule.order or schedule.payload != "residual":
        notes.append(
            f"MagCache reuses the residual over the blocks; the config forecasts the "
            f"{schedule.payload} with order {schedule.order}: the pictures will differ"
        )
    made = {"label": schedule.label, "class": "MagCacheConfig", "arguments": arguments}
    return _json(made), notes


def to_json(schedule: ExportedSchedule) -> tuple[str, list[str]]:
    """Plain JSON for engines that take a list of steps, their noise levels, orders or a payload."""
    data: dict[str, Any] = {
        "label": schedule.label,
        "num_inference_steps": schedule.steps,
        "computed_steps": list(schedule.computed),
        "mask": schedule.mask,
        "payload": schedule.payload,
        "order": schedule.order,
        "guidance": schedule.guidance,
    }
    if schedule.orders:
        data["orders"] = list(schedule.orders)
    notes = []
    if schedule.timesteps:
        data["timesteps"] = schedule.timesteps
        data["sigmas"] = schedule.sigmas
        notes.append(
            "timesteps and sigmas are those that the scheduler gives by itself; a pipeline that "
            "hands levels of its own to it runs at those"
        )
    return _json(data), notes


def _json(data: dict[str, Any]) -> str:
    """JSON with one line per key."""
    lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in data.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


FORMATS: dict[str, Callable[[ExportedSchedule], tuple[str, list[str]]]] = {
    "cache-dit": to_cache_dit,
    "diffusers": to_diffusers,
    "json": to_json,
}
