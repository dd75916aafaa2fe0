"""Calibrate LiteAttention's thresholds against the dense output.

The pipeline runs dense. At every attention call each candidate threshold computes its own output
from its own skip lists, which it has carried along since the generation began, and is held against
the dense output of that very call. So the error is that of skipping, over all steps and for every
layer, and does not depend on what other layers skip. (The original searches one call at a time,
against the output of its own previous list.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.lite_attention import LiteAttentionConfig, LiteAttentionPlanner
from ..attention.options import break_even_of
from ..attention.planner import Dense, LayerContext, State, Watcher
from ..config import require
from ..config.option_types import checked_value
from ..errors import UsageError
from ..io.asking import check_call
from ..io.prompts import Prompt, as_calls
from ..kernels import tile_attention
from .observe import observed

CANDIDATES = (-20.0, -14.0, -10.0, -8.0, -6.5, -5.0, -4.0, -3.0, -2.2, -1.6, -1.0, -0.5)
# Drops nothing that has any weight in float32.
_NEVER = -1000.0


@dataclass(frozen=True)
class Calibration:
    """Thresholds and what they gave on the prompts of the calibration.

    Attributes:
        config: the config with `thresholds` filled in.
        error: per layer, mean relative L1 error of its output against the dense one.
        density: per layer, mean computed share of its attention matrix.
        break_even: share above which sparse attention costs time on the device it ran on.
    """

    config: LiteAttentionConfig
    error: tuple[float, ...]
    density: tuple[float, ...]
    break_even: float = 1.0

    @property
    def saves(self) -> bool:
        """Whether a run with it would skip enough to be worth its cost; else it would go dense."""
        mean = _mean(self.density)
        return mean < 1.0 and mean <= self.break_even


class _Recorder(Watcher):
    """Measures every candidate at every call."""

    def __init__(self, candidates: Mapping[float, LiteAttentionConfig], parts: int) -> None:
        self._planners = {name: LiteAttentionPlanner(c) for name, c in candidates.items()}
        self._parts = parts
        self._least = min(planner.least_tokens for planner in self._planners.values())
        self.layers = 0
        self.device_type = "cpu"
        # tokens of a sequence that was too short
        self.short: int | None = None
        # (layer, part, candidate) -> [relative errors], [densities]
        self.errors: dict[tuple[int, int, float], list[float]] = defaultdict(list)
        self.densities: dict[tuple[int, int, float], list[float]] = defaultdict(list)

    def look(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> None:
        """Let each candidate plan, and hold its output against the dense one."""
        self.layers, self.device_type = context.layers, q.device.type
        if q.shape[2] < self._least:
            self.short = q.shape[2]
            return
        part = min(int(context.fraction * self._parts), self._parts - 1)
        dense: Tensor | None = None
        for name, planner in self._planners.items():
            own = state.setdefault(name, {})
            plan = planner.plan(q, k, v, scale, context, own)
            if isinstance(plan, Dense):
                continue
            if dense is None:
                grouped = q.shape[1] != k.shape[1]
                dense = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=grouped)
            result = tile_attention(
                q, k, v, plan.tile_map, scale=scale, marking=plan.marking, backend=planner.backend
            )
            planner.update(plan, result, own)
            error = (result.output - dense).float().abs().sum() / dense.float().abs().sum()
            key = (context.layer, part, name)
            self.errors[key].append(float(error))
            self.densities[key].append(plan.tile_map.density())


def _measure(
    pipe: Any,
    calls: Sequence[Mapping[str, Any]],
    candidates: Mapping[float, LiteAttentionConfig],
    parts: int,
    seed: int,
    progress: Callable[[str], None],
) -> _Recorder:
    recorder = _Recorder(candidates, parts)
    with observed(pipe, recorder):
        for i, call in enumerate(calls):
            progress(f"dense run {i + 1} of {len(calls)}, {len(candidates)} threshold(s) a layer")
            pipe(**call, generator=torch.Generator().manual_seed(seed + i))
    if not recorder.errors and recorder.short is not None:
        least = next(iter(candidates.values())).min_tokens
        raise UsageError(
            f"nothing to calibrate: attention runs over {recorder.short} tokens here, and shorter "
            f"sequences than min_tokens={least} stay dense; make larger pictures or longer clips, "
            "or leave attention alone for this model"
        )
    if not recorder.errors:
        raise UsageError(
            "no attention call was open to skipping (dense_steps, dense_layers, a mask, or too few "
            "tokens or steps); calibrate with the settings of your real runs"
        )
    return recorder


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def calibrate(
    pipe: Any,
    prompts: Prompt | Iterable[Prompt],
    config: LiteAttentionConfig | None = None,
    *,
    target_error: float = 0.02,
    parts: int = 4,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
    **call: Any,
) -> Calibration:
    """Choose a threshold for every layer and part of the denoising loop.

    The most aggressive of `CANDIDATES` whose mean relative L1 error against the dense output keeps
    to the target is taken; a layer that no candidate serves skips nothing, and no part is more
    aggressive than one that follows, since lists are handed on. One run per prompt
    measures all candidates, a second one what the choice gives.

    Args:
        pipe: an unaccelerated pipeline.
        prompts: a prompt or several, or mappings of call arguments.
        config: all other settings; its thresholds are replaced.
        target_error: relative L1 error of a layer's output, above 0.
        parts: equal parts of the denoising loop with a threshold of their own.
        seed: seed of the first generation.
        progress: called with one line per generation.
        **call: arguments of every pipeline call, e.g. `num_inference_steps=50, height=480`.

    Returns:
        The config to run and save, with error and density of each layer.

    Raises:
        ConfigError: an argument out of range.
        UsageError: the pipeline is accelerated, or nothing was open to skipping.
    """
    seed = checked_value("calibrate", "seed", int, seed)
    parts = checked_value("calibrate", "parts", int, parts)
    target_error = checked_value("calibrate", "target_error", float, target_error)
    require(
        0.0 < target_error < 1.0, f"target_error is {target_error}; give a relative error below 1"
    )
    require(parts >= 1, f"parts is {parts}; it must be 1 or more")
    base = replace(config or LiteAttentionConfig(), thresholds=())
    calls = as_calls(prompts, call)
    for one in calls:
        check_call(pipe, one, "calibrate")
    candidates = {c: replace(base, threshold=c) for c in CANDIDATES}
    seen = _measure(pipe, calls, candidates, parts, seed, progress)

    def choice(layer: int, part: int) -> float:
        good = [
            c
            for c in CANDIDATES
            if seen.errors.get((layer, part, c))
            and _mean(seen.errors[layer, part, c]) <= target_error
        ]
        return max(good, default=_NEVER)

    def choices(layer: int) -> tuple[float, ...]:
        found = [choice(layer, part) for part in range(parts)]
        # what an earlier part drops is missing later too: it must suit all parts that follow
        return tuple(min(found[part:]) for part in range(parts))

    thresholds = tuple(choices(layer) for layer in range(seen.layers))
    chosen = replace(base, thresholds=thresholds)
    held = _measure(pipe, calls, {0.0: chosen}, 1, seed, progress)
    layers = range(held.layers)
    return Calibration(
        chosen,
        error=tuple(_mean(held.errors.get((i, 0, 0.0)) or [0.0]) for i in layers),
        density=tuple(_mean(held.densities.get((i, 0, 0.0)) or [1.0]) for i in layers),
        break_even=break_even_of(chosen.break_even, held.device_type),
    )
