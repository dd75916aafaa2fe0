"""Calibrate an attention method against the dense output, per layer and part of the loop.

Which option is chosen, and of which values, the method says (`Calibrated` in
`attention/engine/options.py`). The pipeline runs dense. At every attention call each candidate
computes its own output from its own state, which it has carried along since the generation began,
and is compared with the dense output of that very call. So the error is that of skipping, over all
steps and for every layer, and does not depend on what other layers skip. (LiteAttention's original
searches one call at a time, against the output of its own previous list.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.engine.attend import attend
from ..attention.engine.options import Calibrated, break_even_of
from ..attention.engine.planner import Dense, LayerContext, Planner, State, Watcher
from ..config import method_from_dict, methods, require
from ..config.option_types import checked_value
from ..errors import UsageError
from ..io.asking import check_call
from ..io.prompts import Prompt, as_calls
from ..pipelines import FamilyAdapter
from .observe import observed


@dataclass(frozen=True)
class Calibration:
    """What was chosen, and what it gave on the prompts of the calibration.

    Attributes:
        config: of the attention method, with the chosen values filled in.
        error: per layer, mean relative L1 error of its output against the dense one.
        density: per layer, mean computed share of its attention matrix.
        break_even: share above which sparse attention costs time on the device it ran on.
    """

    config: Any
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

    def __init__(self, candidates: Mapping[float, Any], parts: int) -> None:
        self._planners: dict[float, Planner] = {n: c.planner() for n, c in candidates.items()}
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
        """Let each candidate plan, and compare its output with the dense one."""
        self.layers, self.device_type = context.layers, q.device.type
        if q.shape[2] < self._least:
            self.short = q.shape[2]
            return
        part = min(int(context.fraction * self._parts), self._parts - 1)
        mask = context.key_mask
        dense: Tensor | None = None
        for name, planner in self._planners.items():
            own = state.setdefault(name, {})
            plan = planner.plan(q, k, v, scale, context, own)
            if isinstance(plan, Dense):
                continue
            if dense is None:
                every = None if mask is None else mask[:, None, None]
                grouped = q.shape[1] != k.shape[1]
                dense = F.scaled_dot_product_attention(
                    q, k, v, every, scale=scale, enable_gqa=grouped
                )
            result = attend(plan, q, k, v, scale, mask, planner.backend, planner.precision)
            planner.update(plan, result, own)
            error = (result.output - dense).float().abs().sum() / dense.float().abs().sum()
            key = (context.layer, part, name)
            self.errors[key].append(float(error))
            self.densities[key].append(plan.tile_map.density())

    def mean_error(self, layer: int, part: int, name: float) -> float | None:
        """Mean error of a candidate; None where it computed nothing."""
        errors = self.errors.get((layer, part, name))
        return _mean(errors) if errors else None


def _measure(
    pipe: Any,
    calls: Sequence[Mapping[str, Any]],
    candidates: Mapping[float, Any],
    parts: int,
    seed: int,
    progress: Callable[[str], None],
    adapter: FamilyAdapter | None,
) -> _Recorder:
    recorder = _Recorder(candidates, parts)
    with observed(pipe, recorder, adapter):
        for i, call in enumerate(calls):
            progress(f"dense run {i + 1} of {len(calls)}, {len(candidates)} value(s) per layer")
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


def calibrated_methods() -> dict[str, Calibrated]:
    """The attention methods that can be calibrated, and their options."""
    found = {name: getattr(kind, "calibrated", None) for name, kind in methods().items()}
    return {name: option for name, option in found.items() if option is not None}


def _checked(config: Any, target_error: float, parts: int) -> Any:
    """The config to begin with: the one given, or the first method that can be calibrated."""
    require(
        0.0 < target_error < 1.0, f"target_error is {target_error}; give a relative error below 1"
    )
    require(parts >= 1, f"parts is {parts}; it must be 1 or more")
    known = calibrated_methods()
    base = method_from_dict({"method": next(iter(known))}) if config is None else config
    require(
        getattr(base, "method", None) in known,
        f"{type(base).__name__} has no option to calibrate; give a config of: {', '.join(known)}",
    )
    return replace(base, **{known[base.method].per_layer: ()})


def _choose(
    seen: _Recorder, option: Calibrated, parts: int, target_error: float
) -> tuple[tuple[float, ...], ...]:
    """The most aggressive candidate that keeps to the target, for each layer and part."""

    def keeps(layer: int, part: int, candidate: float) -> bool:
        error = seen.mean_error(layer, part, candidate)
        return error is not None and error <= target_error

    chosen = []
    for layer in range(seen.layers):
        # candidates get more aggressive: the place of the last good one, -1 for none
        places = [
            max((i for i, c in enumerate(option.candidates) if keeps(layer, part, c)), default=-1)
            for part in range(parts)
        ]
        # what an earlier part drops is missing later too: it must suit all parts that follow
        mildest = (min(places[part:]) for part in range(parts))
        chosen.append(tuple(option.never if i < 0 else option.candidates[i] for i in mildest))
    return tuple(chosen)


def calibrate(
    pipe: Any,
    prompts: Prompt | Iterable[Prompt],
    config: Any = None,
    *,
    target_error: float = 0.02,
    parts: int = 4,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
    adapter: FamilyAdapter | None = None,
    **call: Any,
) -> Calibration:
    """Choose the calibrated option of an attention method for every layer and part of the loop.

    The most aggressive candidate whose mean relative L1 error against the dense output keeps to the
    target is used; a layer that no candidate serves skips nothing, and no part is more aggressive
    than one that follows, since state is handed on. One run per prompt measures all candidates, a
    second one what the choice gives.

    Args:
        pipe: an unaccelerated pipeline.
        prompts: a prompt or several, or mappings of call arguments.
        config: all other settings; by default the first method that can be calibrated.
        target_error: relative L1 error of a layer's output, above 0.
        parts: equal parts of the denoising loop with a value of their own.
        seed: seed of the first generation.
        progress: called with one line per generation.
        adapter: of the transformers; by default that of their family.
        **call: arguments of every pipeline call, e.g. `num_inference_steps=50, height=480`.

    Returns:
        The config to run and save, with error and density of each layer.

    Raises:
        ConfigError: an argument out of range, or a method that has nothing to calibrate.
        UsageError: the pipeline is accelerated, or nothing was open to skipping.
    """
    seed = checked_value("calibrate", "seed", int, seed)
    parts = checked_value("calibrate", "parts", int, parts)
    target_error = checked_value("calibrate", "target_error", float, target_error)
    base = _checked(config, target_error, parts)
    option: Calibrated = base.calibrated
    calls = as_calls(prompts, call)
    for one in calls:
        check_call(pipe, one, "calibrate")
    candidates = {c: replace(base, **{option.option: c}) for c in option.candidates}
    seen = _measure(pipe, calls, candidates, parts, seed, progress, adapter)
    chosen = replace(base, **{option.per_layer: _choose(seen, option, parts, target_error)})
    held = _measure(pipe, calls, {0.0: chosen}, 1, seed, progress, adapter)
    layers = range(held.layers)
    return Calibration(
        chosen,
        error=tuple(held.mean_error(i, 0, 0.0) or 0.0 for i in layers),
        density=tuple(_mean(held.densities.get((i, 0, 0.0)) or [1.0]) for i in layers),
        break_even=break_even_of(chosen.break_even),
    )
