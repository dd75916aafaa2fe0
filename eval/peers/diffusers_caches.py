"""The caches that diffusers itself ships, set up so that each is shown at its best.

Transformers without `CacheMixin` (DiT, PixArt) get the `apply_*` functions and one named context:
their pipelines put all guidance branches into one call, so that one state serves.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ditaccel.errors import ConfigError, UnsupportedError

from ..measure.counting import transformers_of

if TYPE_CHECKING:
    from .base import Situation

# Hooked by name in "modules" mode: every attention and feed-forward, as in the TaylorSeer paper.
# Flux's single blocks join both in proj_out, so what feeds it need not run either.
_CACHED = [
    r"(?:blocks|transformer_blocks)\.\d+\.(?:attn\d?|ff|ffn|ff_context)",
    r"single_transformer_blocks\.\d+\.proj_out",
]
_SKIPPED = [r"single_transformer_blocks\.\d+\.(?:attn|proj_mlp)"]
_BLOCKS = [r"[^.]*blocks\.\d+"]


def _hooked(transformer: nn.Module) -> int:
    registries = (vars(module).get("_diffusers_hook") for module in transformer.modules())
    return sum(bool(registry.hooks) for registry in registries if registry is not None)


def _enable(
    pipe: Any,
    situation: Situation,
    make: Callable[[str, nn.Module], Any],
    apply: Callable[[nn.Module, Any], None],
) -> None:
    """Put a cache on every transformer of a pipeline, by the door it has.

    Args:
        pipe: an isolated pipeline.
        situation: of the run.
        make: the cache's config for a component's name and module.
        apply: diffusers' function for transformers without `CacheMixin`.

    Raises:
        UnsupportedError: it would hook nothing, or could not tell the branches apart.
    """
    from diffusers.hooks.hooks import CacheContext, _set_cache_context
    from diffusers.models.cache_utils import CacheMixin

    for name, transformer in transformers_of(pipe).items():
        config = make(name, transformer)
        if isinstance(transformer, CacheMixin):
            transformer.enable_cache(config)
        elif situation.branches > 1:
            raise UnsupportedError(
                f"{type(transformer).__name__} has no CacheMixin and its pipeline calls it "
                f"{situation.branches} times a step without naming the branch"
            )
        else:
            apply(transformer, config)
            _set_cache_context(transformer, CacheContext(name="all"))
        if not _hooked(transformer):
            raise UnsupportedError(
                f"it hooks no module of {name} ({type(transformer).__name__}): a silent no-op"
            )


def first_block_cache(pipe: Any, options: dict[str, Any], situation: Situation, _: Any) -> None:
    """FirstBlockCache: reuse the tail's residual while the first block's changes little."""
    from diffusers import FirstBlockCacheConfig
    from diffusers.hooks import apply_first_block_cache

    config = FirstBlockCacheConfig(threshold=options["threshold"])
    _enable(pipe, situation, lambda *_: config, apply_first_block_cache)


def _last_projection(transformer: nn.Module) -> str:
    names = [name for name, _ in transformer.named_children() if name.startswith("proj_out")]
    if not names:
        raise UnsupportedError(f"{type(transformer).__name__} has no final projection to forecast")
    return names[-1]


def taylorseer(pipe: Any, options: dict[str, Any], situation: Situation, _: Any) -> None:
    """TaylorSeer at a fixed interval.

    `mode=lite` forecasts the final projection only and skips whole blocks; `mode=modules`
    forecasts every attention and feed-forward; `mode=default` leaves the choice to diffusers.
    """
    from diffusers import TaylorSeerCacheConfig
    from diffusers.hooks import apply_taylorseer_cache

    mode = options["mode"]
    if mode not in ("lite", "modules", "default"):
        raise ConfigError(f"peer/taylorseer: mode is lite, modules or default, not {mode!r}")

    def make(_: str, transformer: nn.Module) -> Any:
        patterns: dict[str, Any] = {}
        if mode == "lite":
            patterns = {
                "skip_predict_identifiers": _BLOCKS,
                "cache_identifiers": [_last_projection(transformer)],
            }
        elif mode == "modules":
            patterns = {"skip_predict_identifiers": _SKIPPED, "cache_identifiers": _CACHED}
        dtype = next(transformer.parameters()).dtype
        return TaylorSeerCacheConfig(
            cache_interval=options["interval"],
            disable_cache_before_step=options["before"],
            disable_cache_after_step=options["after"] or None,
            max_order=options["order"],
            # Its default, bfloat16, would cost a float32 model precision for nothing.
            taylor_factors_dtype=dtype,
            **patterns,
        )

    _enable(pipe, situation, make, apply_taylorseer_cache)


def magcache_ratios(pipe: Any, options: dict[str, Any], situation: Situation) -> dict[str, Any]:
    """MagCache's magnitude ratios of each transformer, from one calibration generation."""
    from diffusers import MagCacheConfig
    from diffusers.hooks import apply_mag_cache
    from diffusers.hooks.mag_cache import MagCacheState

    found: dict[str, list[float]] = {}
    # Its hooks print the ratios for a person to copy, and forget them: they are read on the way.
    config = MagCacheConfig(calibrate=True, num_inference_steps=situation.steps + 1)
    _enable(pipe, situation, lambda *_: config, apply_mag_cache)

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for state in _states(module, MagCacheState):
                if len(state.calibration_ratios) > len(found.get(name, [])):
                    found[name] = list(state.calibration_ratios)

        return hook

    for name, transformer in transformers_of(pipe).items():
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

    _enable(pipe, situation, make, apply_mag_cache)


def pyramid_attention_broadcast(
    pipe: Any, options: dict[str, Any], situation: Situation, _: Any
) -> None:
    """Pyramid Attention Broadcast: reuse attention outputs in the middle of the schedule."""
    from diffusers import PyramidAttentionBroadcastConfig
    from diffusers.hooks import apply_pyramid_attention_broadcast

    now = {"timestep": 1000.0}

    def watch(module: nn.Module, args: Any, kwargs: Any) -> None:
        timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        value = float(torch.as_tensor(timestep).detach().float().max())
        # Flux hands over the timestep divided by 1000; the range is meant in scheduler units.
        now["timestep"] = value * 1000.0 if value <= 1.0 else value

    def make(_: str, transformer: nn.Module) -> Any:
        transformer.register_forward_pre_hook(watch, with_kwargs=True)
        span = (options["low"], options["high"])
        return PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=options["spatial"] or None,
            cross_attention_block_skip_range=options["cross"] or None,
            spatial_attention_timestep_skip_range=span,
            cross_attention_timestep_skip_range=span,
            current_timestep_callback=lambda: now["timestep"],
        )

    _enable(pipe, situation, make, apply_pyramid_attention_broadcast)


def seacache(pipe: Any, options: dict[str, Any], situation: Situation, _: Any) -> None:
    """SeaCache: accumulate the spectrally filtered input change until a threshold."""
    from diffusers import SeaCacheConfig
    from diffusers.hooks import apply_sea_cache

    for transformer in transformers_of(pipe).values():
        if not type(transformer).__name__.startswith(("Wan", "Cosmos3")):
            raise UnsupportedError(
                f"peer/seacache caches nothing on {type(transformer).__name__}: it needs the sigma "
                "that only the Wan and Cosmos3 pipelines hand over"
            )
    config = SeaCacheConfig(
        threshold=options["threshold"],
        residual_order=options["order"],
        max_consecutive_cached=options["max_skip"],
    )
    _enable(pipe, situation, lambda *_: config, apply_sea_cache)
