"""The definition of sparse-linear attention, in float64 and in plain torch.

It forms the L x L matrices, and autograd follows it: slow, and meant to be read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import why_no_float64
from ..tiling import Tiling
from .call import SparseLinearCall, SparseLinearOutput


def why_not(call: SparseLinearCall) -> str | None:
    """Why the definition cannot run, None if it can."""
    return why_no_float64(call.attention.q.device)


def run(call: SparseLinearCall) -> SparseLinearOutput:
    """Softmax over the critical tiles, linear attention over the marginal ones."""
    own = call.attention
    q = own.q.double()
    k, v, k_features = (
        x.double().repeat_interleave(own.group, 1) for x in (own.k, own.v, call.k_features)
    )
    tile_map = own.tile_map
    tilings = (tile_map.q_tiling, tile_map.k_tiling)
    critical = _by_token(tile_map.to_mask(), *tilings)
    if own.mask is not None:
        critical = critical & own.mask
    scores = (q @ k.transpose(-1, -2) * own.scale).masked_fill(~critical, -torch.inf)
    lse = scores.logsumexp(-1, keepdim=True)
    # A query without keys would have the weights exp(-inf - -inf), and no derivative.
    empty = ~critical.any(-1, keepdim=True)
    weights = torch.exp(scores - lse.masked_fill(empty, 0.0))

    similar = call.q_features.double() @ k_features.transpose(-1, -2)
    similar = similar * _by_token(call.marginal, *tilings)
    mass = similar.sum(-1, keepdim=True)
    linear = similar @ v / (mass + call.eps)
    sums = torch.float64 if own.q.dtype == torch.float64 else torch.float32
    return SparseLinearOutput(
        _like(weights @ v, own.q),
        _like(linear, own.q),
        lse[..., 0].to(sums),
        mass[..., 0].to(sums),
    )


def _by_token(mask: Tensor, q_tiling: Tiling, k_tiling: Tiling) -> Tensor:
    """A mask of tiles `(B|1, H|1, Tq, Tk)` as one of pairs of tokens `(B|1, H|1, Lq, Lk)`."""
    q_tile_of = q_tiling.tile_of_token(mask.device)[0, 0]
    k_tile_of = k_tiling.tile_of_token(mask.device)[0, 0]
    return mask[:, :, q_tile_of][..., k_tile_of]


def _like(x: Tensor, q: Tensor) -> Tensor:
    """In the dtype and layout of q; autograd follows the copy."""
    return torch.empty_like(q).copy_(x)
