"""diffusers' TaylorSeer, with identifiers that fit the model."""

from __future__ import annotations

from typing import Any

from torch import nn

from ditaccel.errors import ConfigError, UnsupportedError

from .base import Peer, Situation, register
from .diffusers_hooks import enable

# Hooked by name in "modules" mode: every attention and feed-forward, as in the TaylorSeer paper.
# Flux's single blocks join both in proj_out, so what feeds it need not run either.
_CACHED = [
    r"(?:blocks|transformer_blocks)\.\d+\.(?:attn\d?|ff|ffn|ff_context)",
    r"single_transformer_blocks\.\d+\.proj_out",
]
_SKIPPED = [r"single_transformer_blocks\.\d+\.(?:attn|proj_mlp)"]
_BLOCKS = [r"[^.]*blocks\.\d+"]


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

    enable(pipe, situation, make, apply_taylorseer_cache)


register(
    Peer(
        name="taylorseer",
        note="diffusers; identifiers fitted to the model (its own defaults miss Wan and DiT)",
        options={"mode": "lite", "interval": 5, "before": 3, "after": 0, "order": 1},
        apply=taylorseer,
    )
)
