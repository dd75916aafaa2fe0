"""Sparse-linear attention by Triton kernels, forward and backward."""

from __future__ import annotations

from ..attention import triton_backend, triton_backward
from ..dispatch import arch_of
from . import triton_linear
from .call import Gradients, SparseLinearCall, SparseLinearOutput


def why_not(call: SparseLinearCall) -> str | None:
    """Why the kernels cannot run this call, None if they can."""
    own = call.attention
    return triton_backend.why_not(own) or triton_backend.why_no_backward(own)


def forward(call: SparseLinearCall) -> SparseLinearOutput:
    """Both branches."""
    tiles = triton_backend.run(call.attention)
    assert tiles.lse is not None
    linear, mass = triton_linear.forward(call, arch_of(call.attention.q.device))
    return SparseLinearOutput(tiles.output, linear, tiles.lse, mass)


def backward(
    call: SparseLinearCall, output: SparseLinearOutput, gradients: SparseLinearOutput
) -> Gradients:
    """Gradients of q, k, v, q_features and k_features."""
    d_q_features, d_k_features, more = triton_linear.backward(
        call,
        output.linear,
        output.mass,
        gradients.linear,
        gradients.mass,
        arch_of(call.attention.q.device),
    )
    d_q, d_k, d_v = triton_backward.run(
        call.attention, output.sparse, output.lse, gradients.sparse, gradients.lse, more
    )
    return Gradients(d_q, d_k, d_v, d_q_features, d_k_features)
