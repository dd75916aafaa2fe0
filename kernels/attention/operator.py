"""Tile attention with gradients, as an operator of torch.

The operator takes tensors and numbers only, so that `torch.compile` and FakeTensor see shapes and
never look inside.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import choose
from ..tile_map import TileMap
from ..tiling import Tiling
from .backends import BACKENDS
from .call import AttentionCall, TileAttentionOutput


def run(call: AttentionCall, backend: str) -> TileAttentionOutput:
    """Call the operator on a backend that has a backward; autograd follows q, k and v."""
    output, lse = torch.ops.ditaccel.tile_attention(
        call.q,
        call.k,
        call.v,
        call.tile_map.indices,
        call.tile_map.counts,
        call.mask,
        call.tile_map.q_tiling.tile,
        call.tile_map.k_tiling.tile,
        call.scale,
        backend,
    )
    return TileAttentionOutput(output, lse if call.return_lse else None, None)


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    mask: Tensor | None,
    q_tile: int,
    k_tile: int,
    scale: float,
) -> AttentionCall:
    tilings = Tiling.fixed(q.shape[2], q_tile), Tiling.fixed(k.shape[2], k_tile)
    return AttentionCall(q, k, v, TileMap(indices, counts, *tilings), scale, mask, True, None)


@torch.library.custom_op("ditaccel::tile_attention", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    mask: Tensor | None,
    q_tile: int,
    k_tile: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp."""
    call = _call(q, k, v, indices, counts, mask, q_tile, k_tile, scale)
    output = choose("tile_attention", BACKENDS, call, backend).run(call)
    return output.output, output.lse


@_forward.register_fake
def _(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("ditaccel::tile_attention_backward", mutates_args=())
def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    mask: Tensor | None,
    output: Tensor,
    lse: Tensor,
    d_output: Tensor,
    d_lse: Tensor,
    q_tile: int,
    k_tile: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    call = _call(q, k, v, indices, counts, mask, q_tile, k_tile, scale)
    chosen = choose("tile_attention", BACKENDS, call, backend)
    assert chosen.backward is not None
    with torch.no_grad():
        gradients: tuple[Tensor, Tensor, Tensor] = chosen.backward(
            call, output, lse, d_output, d_lse
        )
        return gradients


@_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6], *output)
    ctx.numbers = inputs[6:]


def _differentiate(ctx: Any, d_output: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.ditaccel.tile_attention_backward(
        *ctx.saved_tensors, d_output, d_lse, *ctx.numbers
    )
    return (*gradients, *(None,) * 7)


_forward.register_autograd(_differentiate, setup_context=_save)
