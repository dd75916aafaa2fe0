"""Tile attention by torch's FlexAttention: a second opinion on devices that it compiles for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from math import gcd
from typing import Any

import torch

from .call import AttentionCall, TileAttentionOutput
from .int8 import in_int8


def why_not(call: AttentionCall) -> str | None:
    """Why FlexAttention cannot run this call, None if it can."""
    if not call.tile_map.is_fixed:
        return "FlexAttention has no tiles of variable size"
    if call.marking is not None:
        return "FlexAttention does not show the running max, so it cannot mark"
    if call.centroids is not None:
        return "it adds nothing to the scores, so it cannot weigh centroids"
    if call.mask is not None:
        return "a mask would need a function of every pair of tokens, compiled again for each mask"
    if call.needs_grad:
        return "it has no backward here; call it under torch.no_grad(), or ask for 'torch'"
    if call.q.device.type == "cpu" and call.return_lse:
        return "FlexAttention gives no log-sum-exp on a CPU"
    if call.q.device.type not in ("cpu", "cuda"):
        return f"it was not tried on {call.q.device.type}"
    if call.q.dtype == torch.float64:
        return "it computes in float32"
    tiles = (call.tile_map.q_tiling.tile or 1, call.tile_map.k_tiling.tile or 1)
    if call.q.device.type == "cuda" and any(tile % 16 for tile in tiles):
        return f"its blocks must be multiples of 16 on a GPU, got {tiles[0]} x {tiles[1]}"
    return None


def run(call: AttentionCall) -> TileAttentionOutput:
    """Whole blocks only, so that no function of pairs of tokens is evaluated.

    The first call with a new kind of shape compiles for tens of seconds.
    """
    if call.precision == "int8":
        return in_int8(replace(call, v=call.v.float()), run)
    from torch.nn.attention.flex_attention import AuxRequest

    options = None
    if call.q.device.type == "cuda":
        options = {
            "BLOCK_M": gcd(call.tile_map.q_tiling.tile or 0, 128),
            "BLOCK_N": gcd(call.tile_map.k_tiling.tile or 0, 64),
        }
    result = _compiled()(
        call.q,
        call.k,
        call.v,
        block_mask=call.tile_map.to_block_mask(),
        scale=call.scale,
        enable_gqa=call.group > 1,
        kernel_options=options,
        return_aux=AuxRequest(lse=True) if call.return_lse else None,
    )
    attended, lse = (result[0], result[1].lse) if call.return_lse else (result, None)
    output = torch.empty_like(call.q).copy_(attended)
    return TileAttentionOutput(output, None if lse is None else lse.float(), None)


@cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
