"""diffusers' MagCache, calibrated on the model."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ditaccel.core.transformers import denoisers_of
from ditaccel.errors import UnsupportedError

from .base import Peer, Situation, register
from .diffusers_hooks import enable


def magcache_ratios(pipe: Any, options: dict[str, Any], situation: Situation) -> dict[str, Any]:
    """MagCache's magnitude ratios of each transformer, from one calibration generation."""
    from diffusers import MagCacheConfig
    from diffusers.hooks import apply_mag_cache
    from diffusers.hooks.mag_cache import MagCacheState

    found: dict[str, list[float]] = {}
    # Its hooks print the ratios for a person to copy, and forget them: they are read on the way.
    config = MagCacheConfig(calibrate=True, num_inference_steps=situation.steps + 1)
    enable(pipe, situation, lambda *_: config, apply_mag_cache)

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for state in _states(module, MagCacheState):
                if len(state.calibration_ratios) > len(found.get(name, [])):
                    found[name] = list(state.calibration_ratios)

        return hook

    for name, transformer in denoisers_of(pipe).items():
        transformer.register_forward_hook(keep(name))
    with contextlib.redirect_stdout(io.StringIO()):
        situation.generate(pipe)
    if not found:
        raise UnsupportedError("peer/magcache: the calibration run gave no ratios")
    return {name: torch.tensor(ratios) for name, ratios in found.items()}


def _states(transformer: nn.Module, kind: type) -> list[Any]:
    from diffusers.hooks.hooks import StateManager

    states = []
    for module in transformer.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for hook in registry.hooks.values() if registry else ():
            for value in vars(hook).values():
                if isinstance(value, StateManager):
                    states += [s for s in value._state_cache.values() if isinstance(s, kind)]
    return states


def magcache(pipe: Any, options: dict[str, Any], situation: Situation, ratios: Any) -> None:
    """MagCache: reuse the residual while the calibrated magnitude ratios stay near one."""
    from diffusers import MagCacheConfig
    from diffusers.hooks import apply_mag_cache

    def make(name: str, transformer: nn.Module) -> Any:
        if name not in ratios:
            raise UnsupportedError(f"peer/magcache: the calibration run never called {name}")
        return MagCacheConfig(
            threshold=options["threshold"],
            max_skip_steps=options["max_skip"],
            retention_ratio=options["retention"],
            num_inference_steps=len(ratios[name]),
            mag_ratios=ratios[name],
        )

    enable(pipe, situation, make, apply_mag_cache)


register(
    Peer(
        name="magcache",
        note="diffusers; ratios from one calibration generation with another seed",
        options={"threshold": 0.06, "max_skip": 3, "retention": 0.2},
        apply=magcache,
        prepare=magcache_ratios,
    )
)
