"""A schedule in the form that an engine reads, or in plain JSON for others."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
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
        notes.append(_reused(schedule))
    made = {"label": schedule.label, "class": "MagCacheConfig", "arguments": arguments}
    return _json(made), notes


def to_vllm_omni(schedule: ExportedSchedule) -> tuple[str, list[str]]:
    """The JSON of `--cache-config` for `--cache-backend mag_cache`, and what differs there.

    Of vLLM-Omni's caches, MagCache alone takes numbers for each step; its rule is that of diffusers
    (`to_diffusers`).
    """
    arguments = json.loads(to_diffusers(schedule)[0])["arguments"]
    names = {"num_inference_steps": "num_inference_steps", "mag_ratios": "mag_ratios"}
    made = {names.get(name, f"mag_{name}"): value for name, value in arguments.items()}
    notes = [
        "no cache of vLLM-Omni takes a list of steps; these ratios make its MagCache compute just "
        f"these, in requests of {schedule.steps} steps"
    ]
    if schedule.order or schedule.payload != "residual":
        notes.append(_reused(schedule))
    return _json(made), notes


def to_sglang(schedule: ExportedSchedule) -> tuple[str, list[str]]:
    """Environment variables of SGLang, whose cache-dit takes runs of computed, skipped steps."""
    runs = [(bool(one), len(list(group))) for one, group in groupby(schedule.mask)]
    bins = {kind: [str(length) for one, length in runs if one is kind] for kind in (True, False)}
    lines = {
        "ENABLED": "true",
        "FN": "1",
        "BN": "0",
        "WARMUP": "1",
        "RDT": "1.0",
        "MC": str(max(schedule.longest_gap, 1)),
        "TAYLORSEER": "true" if schedule.order else "false",
        **({"TS_ORDER": str(schedule.order)} if schedule.order else {}),
        "SCM_COMPUTE_BINS": ",".join(bins[True]),
        "SCM_CACHE_BINS": ",".join(bins[False]),
        "SCM_POLICY": "static",
    }
    text = "".join(f"export SGLANG_CACHE_DIT_{name}={value}\n" for name, value in lines.items())
    notes = [
        f"for requests of {schedule.steps} steps; the first block runs on skipped steps too",
    ]
    if not bins[False]:
        notes.append("all steps are computed, so SGLang reads no bins")
    head = f"# {schedule.label}: {len(schedule.computed)} of {schedule.steps} steps are computed\n"
    return head + text, notes


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


def _reused(schedule: ExportedSchedule) -> str:
    return (
        f"MagCache reuses the residual over the blocks; the config forecasts the "
        f"{schedule.payload} with order {schedule.order}: the pictures will differ"
    )


def _json(data: dict[str, Any]) -> str:
    """JSON with one line per key."""
    lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in data.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


FORMATS: dict[str, Callable[[ExportedSchedule], tuple[str, list[str]]]] = {
    "cache-dit": to_cache_dit,
    "diffusers": to_diffusers,
    "vllm-omni": to_vllm_omni,
    "sglang": to_sglang,
    "json": to_json,
}
