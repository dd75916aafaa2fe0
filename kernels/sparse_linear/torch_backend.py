"""Sparse-linear attention in plain torch: computes critical tiles only, forward and backward."""

from __future__ import annotations

import torch

from ..attention import torch_backend, torch_backward
from . import torch_linear
from .call import Gradients, SparseLinearCall, SparseLinearOutput


def forward(call: SparseLinearCall) -> SparseLinearOutput:
    """Both branches."""
    with torch.no_grad():
        tiles = torch_backend.run(call.attention)
        assert tiles.lse is not None
        linear, mass = torch_linear.forward(call)
        return SparseLinearOutput(tiles.output, linear, tiles.lse, mass)


def backward(
    call: SparseLinearCall, output: SparseLinearOutput, gradients: SparseLinearOutput
) -> Gradients:
    """Gradients of q, k, v, q_features and k_features."""
    with torch.no_grad():
        d_q, d_k, d_v = torch_backward.run(
            call.attention, output.sparse, output.lse, gradients.sparse, gradients.lse
        )
        d_q_features, d_k_features, more = torch_linear.backward(
            call, output.linear, output.mass, gradients.linear, gradients.mass
        )
        return Gradients(d_q, d_k, d_v.add_(more), d_q_features, d_k_features)
