"""Sparse-linear attention as an operator of torch: one node of a compiled graph, with gradients.

The operator takes tensors and numbers only, so that `torch.compile` and FakeTensor see shapes and
never look inside; which backend runs is chosen where the tensors are real. Its gradient is an
operator too. What is saved for it is q, k, v, features, outputs and the maps: nothing that grows
with Lq x Lk, nor with tiles x F x D.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..attention.call import AttentionCall
from ..dispatch import choose
from ..tile_map import TileMap
from ..tiling import Tiling
from .backends import BACKENDS
from .call import Gradients, SparseLinearCall, SparseLinearOutput


def run(call: SparseLinearCall, backend: str | None) -> SparseLinearOutput:
    """Call the operator."""
    own = call.attention
    return SparseLinearOutput(
        *torch.ops.ditaccel.sparse_linear_attention(
            own.q,
            own.k,
            own.v,
            call.q_features,
            call.k_features,
            own.tile_map.indices,
            own.tile_map.counts,
            call.marginal,
            own.mask,
            call.q_tile,
            call.k_tile,
            own.scale,
            call.eps,
            backend or "",
        )
    )


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_features: Tensor,
    k_features: Tensor,
    indices: Tensor,
    counts: Tensor,
    marginal: Tensor,
    mask: Tensor | None,
    q_tile: int,
    k_tile: int,
    scale: float,
    eps: float,
) -> SparseLinearCall:
    tilings = Tiling.fixed(q.shape[2], q_tile), Tiling.fixed(k.shape[2], k_tile)
    attention = AttentionCall(q, k, v, TileMap(indices, counts, *tilings), scale, mask, True, None)
    return SparseLinearCall(attention, marginal, q_features, k_features, eps)


@torch.library.custom_op("ditaccel::sparse_linear_attention", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_features: Tensor,
    k_features: Tensor,
    indices: Tensor,
    counts: Tensor,
    marginal: Tensor,
    mask: Tensor | None,
    q_tile: int,
    k_tile: int,
    scale: float,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sparse branch, linear branch, log-sum-exp and mass."""
    call = _call(
        *(q, k, v, q_features, k_features, indices, counts, marginal, mask),
        *(q_tile, k_tile, scale, eps),
    )
    chosen = choose("sparse_linear_attention", BACKENDS, call, backend or None)
    return tuple(chosen.run(call))


@_forward.register_fake
def _(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_row = q.new_empty(q.shape[:3], dtype=torch.float32)
    return torch.empty_like(q), torch.empty_like(q), of_row, torch.empty_like(of_row)


@torch.library.custom_op("ditaccel::sparse_linear_attention_backward", mutates_args=())
def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_features: Tensor,
    k_features: Tensor,
    indices: Tensor,
    counts: Tensor,
    marginal: Tensor,
    mask: Tensor | None,
    output: list[Tensor],
    gradients: list[Tensor],
    q_tile: int,
    k_tile: int,
    scale: float,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, q_features and k_features."""
    call = _call(
        *(q, k, v, q_features, k_features, indices, counts, marginal, mask),
        *(q_tile, k_tile, scale, eps),
    )
    chosen = choose("sparse_linear_attention", BACKENDS, call, backend or None)
    assert chosen.backward is not None
    found: Gradients = chosen.backward(
        call, SparseLinearOutput(*output), SparseLinearOutput(*gradients)
    )
    return found


@_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, q_features: Tensor, k_features: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = [torch.empty_like(x) for x in (q, k, v, q_features, k_features)]
    return like[0], like[1], like[2], like[3], like[4]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:9], *output)
    ctx.numbers = inputs[9:]


def _differentiate(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, sparse, linear, lse, mass = ctx.saved_tensors
    wanted = torch.ops.ditaccel.sparse_linear_attention_backward(
        *inputs, [sparse, linear, lse, mass], list(gradients), *ctx.numbers
    )
    return (*wanted, *(None,) * 9)


_forward.register_autograd(_differentiate, setup_context=_save)
