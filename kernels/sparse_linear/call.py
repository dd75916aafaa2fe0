"""What a call of `sparse_linear_attention` is made of, and the checks that all backends share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..attention.call import AttentionCall
from ..attention.call import check_call as check_attention
from ..tile_map import TileMap


class SparseLinearOutput(NamedTuple):
    """What `sparse_linear_attention` returns.

    Attributes:
        sparse: `(B, H, Lq, D)`, softmax attention over the critical tiles, in the dtype and layout
            of q; 0 for a query without keys.
        linear: the same of linear attention over the marginal tiles.
        lse: float32 `(B, H, Lq)`, natural log of the sum of exponentials of the critical tiles;
            -inf for a query without keys.
        mass: float32 `(B, H, Lq)`, `phi(Q_i) Z_i`: what linear attention divides by, without eps;
            0 for a query without marginal keys.
    """

    sparse: Tensor
    linear: Tensor
    lse: Tensor
    mass: Tensor

    def projected(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`sparse + Proj(linear)`, the output of SLA.

        Args:
            weight: `(D, D)`, or `(H, D, D)` for one of each head.
            bias: `(D)`, or None.
        """
        linear = self.linear.to(weight.dtype) @ weight.transpose(-1, -2)
        if bias is not None:
            linear = linear + bias
        return (self.sparse + linear).to(self.sparse.dtype)


class Gradients(NamedTuple):
    """What a backward returns, each like its tensor."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_features: Tensor
    k_features: Tensor


@dataclass(frozen=True, eq=False)
class SparseLinearCall:
    """A checked call.

    Attributes:
        attention: the sparse branch: q, k, v, critical tiles, scale and mask.
        marginal: bool `(B|1, H|1, Tq, Tk)`.
        q_features: `(B, H, Lq, F)`.
        k_features: `(B, Hkv, Lk, F)`, 0 for keys that are masked out.
        eps: added to the mass.
    """

    attention: AttentionCall
    marginal: Tensor
    q_features: Tensor
    k_features: Tensor
    eps: float

    @property
    def q_tile(self) -> int:
        """Queries of a tile."""
        return self.attention.tile_map.q_tiling.tile or 0

    @property
    def k_tile(self) -> int:
        """Keys of a tile."""
        return self.attention.tile_map.k_tiling.tile or 0


def check_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    critical: TileMap,
    marginal: TileMap | Tensor,
    q_features: Tensor,
    k_features: Tensor,
    scale: float | None,
    mask: Tensor | None,
    eps: float,
) -> SparseLinearCall:
    """Turn the arguments of `sparse_linear_attention` into a call, or say what is wrong."""
    attention = check_attention(q, k, v, critical, scale, mask, True, None)
    if not critical.is_fixed:
        raise ValueError("critical has tiles of variable size; sparse-linear attention takes fixed")
    if attention.mask is not None and attention.mask.shape[1:3] != (1, 1):
        raise ValueError(
            "mask must be one of keys, (B, Lk): linear attention sums keys once for all queries; "
            f"got {tuple(attention.mask.shape)}"
        )
    marginal = _check_marginal(marginal, critical, q.shape[0], q.shape[1])
    for name, features, like in (("q_features", q_features, q), ("k_features", k_features, k)):
        if features.ndim != 4 or features.shape[:3] != like.shape[:3] or not features.shape[3]:
            raise ValueError(
                f"{name} must have the shape {(*like.shape[:3], 'F')}, got {tuple(features.shape)}"
            )
        if features.dtype != q.dtype or features.device != q.device:
            raise TypeError(
                f"{name} is {features.dtype} on {features.device}, but q {q.dtype} on {q.device}"
            )
    if q_features.shape[3] != k_features.shape[3]:
        raise ValueError(
            f"q_features has {q_features.shape[3]} channels, but k_features {k_features.shape[3]}"
        )
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be positive and finite, got {eps}")
    if attention.mask is not None:
        # Keys that are masked out weigh nothing in the linear branch either.
        k_features = k_features.masked_fill(~attention.mask.transpose(-1, -2), 0.0)
    return SparseLinearCall(attention, marginal, q_features, k_features, float(eps))


def _check_marginal(
    marginal: TileMap | Tensor, critical: TileMap, batch: int, heads: int
) -> Tensor:
    if isinstance(marginal, TileMap):
        for name in ("q_tiling", "k_tiling"):
            own, other = getattr(marginal, name), getattr(critical, name)
            if (own.length, own.tile) != (other.length, other.tile):
                raise ValueError(
                    f"marginal.{name} has {own.length} tokens in tiles of {own.tile}, but that of "
                    f"critical {other.length} in {other.tile}"
                )
        marginal = marginal.to_mask()
    if not isinstance(marginal, Tensor):
        raise TypeError(f"marginal must be a TileMap or a tensor, got {type(marginal).__name__}")
    if marginal.dtype != torch.bool:
        raise TypeError(f"marginal must be bool, got {marginal.dtype}")
    tiles = (critical.q_tiles, critical.k_tiles)
    if (
        marginal.ndim != 4
        or marginal.shape[0] not in (1, batch)
        or marginal.shape[1] not in (1, heads)
        or tuple(marginal.shape[2:]) != tiles
    ):
        raise ValueError(
            f"marginal must have the shape (B or 1, H or 1, {tiles[0]}, {tiles[1]}), got "
            f"{tuple(marginal.shape)}"
        )
    if marginal.device != critical.device:
        raise ValueError(f"marginal is on {marginal.device}, but critical on {critical.device}")
    return marginal
