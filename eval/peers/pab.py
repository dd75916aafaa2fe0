"""diffusers' Pyramid Attention Broadcast."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .base import Peer, Situation, register
from .diffusers_hooks import enable


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

    enable(pipe, situation, make, apply_pyramid_attention_broadcast)


register(
    Peer(
        name="pab",
        note="diffusers; skips attention only; one state for all guidance branches",
        options={"spatial": 2, "cross": 0, "low": 100, "high": 800},
        apply=pyramid_attention_broadcast,
    )
)
