"""One vector for each tile of tokens, and one score for each tile of the attention matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import Backend, anywhere, choose, own_precision, why_not_triton
from .segments import segment_means_by_triton, segment_sums
from .tiling import Tiling

__all__ = ["pool_tiles", "pooled_scores"]


@own_precision
def pool_tiles(x: Tensor, tiling: Tiling, *, backend: str | None = None) -> Tensor:
    """Mean of the tokens of each tile.

    Args:
        x: `(B, H, L, D)`, any strides.
        tiling: of the tokens, fixed or variable.
        backend: `triton` or `torch`; by default the first that can run the call.

    Returns:
        float32 `(B, H, T, D)`; 0 for a tile without tokens.

    Raises:
        TypeError: x is not floating point.
        ValueError: shapes or devices that do not fit.
    """
    call = _check_call(x, tiling)
    return choose("pool_tiles", BACKENDS, call, backend).run(call)


@own_precision
def pooled_scores(
    q: Tensor,
    k: Tensor,
    q_tiling: Tiling,
    k_tiling: Tiling,
    scale: float | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Score of each tile: the mean query of its rows times the mean key of its columns.

    That is the mean of the tile's scores. It ranks tiles; within a tile it sees no spread.

    Args:
        q: `(B, H, Lq, D)`, any strides.
        k: `(B, Hkv, Lk, D)`; Hkv divides H.
        q_tiling: of the queries.
        k_tiling: of the keys; variable tiles are given per key head or per query head.
        scale: `1 / sqrt(D)` by default.
        backend: see `pool_tiles`.

    Returns:
        float32 `(B, H, Tq, Tk)`; 0 for a query tile without tokens, -inf for a key tile without.

    Raises:
        TypeError: not floating point.
        ValueError: shapes or devices that do not fit.
    """
    if q.ndim != 4 or k.ndim != 4 or q.shape[1] % k.shape[1] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"q {tuple(q.shape)} and k {tuple(k.shape)} must be (B, H, Lq, D) and (B, Hkv, Lk, D), "
            "with H a multiple of Hkv"
        )
    group = q.shape[1] // k.shape[1]
    k_own = k_tiling
    if k_tiling.offsets is not None and k_tiling.offsets.shape[1] == q.shape[1]:
        # Heads that share keys share their tiles.
        k_own = Tiling.variable(k_tiling.offsets[:, ::group], k_tiling.length)
    q_mean = pool_tiles(q, q_tiling, backend=backend)
    k_mean = pool_tiles(k, k_own, backend=backend).repeat_interleave(group, 1)
    scores = (q_mean * (q.shape[3] ** -0.5 if scale is None else scale)) @ k_mean.transpose(-1, -2)
    empty = k_own.sizes(k.device) == 0
    if empty.shape[1] > 1:
        empty = empty.repeat_interleave(group, 1)
    return scores.masked_fill(empty[..., None, :], -torch.inf)


@dataclass(frozen=True, eq=False)
class PoolCall:
    """A checked call."""

    x: Tensor
    tiling: Tiling


def _check_call(x: Tensor, tiling: Tiling) -> PoolCall:
    """Turn the arguments of `pool_tiles` into a call, or say what is wrong with them."""
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"x must have the shape (B, H, L, D), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating point tensor, got {x.dtype}")
    if tiling.length != x.shape[2]:
        raise ValueError(f"tiling is for {tiling.length} tokens, but x has {x.shape[2]}")
    if tiling.offsets is not None:
        if tiling.offsets.device != x.device:
            raise ValueError(f"tiling is on {tiling.offsets.device}, but x on {x.device}")
        of_tiling = tuple(tiling.offsets.shape[:2])
        if any(own not in (1, of) for own, of in zip(of_tiling, x.shape[:2], strict=True)):
            raise ValueError(
                f"tiling is for {of_tiling} batch items and heads, which must be those of x "
                f"{tuple(x.shape[:2])} or 1 (shared)"
            )
    return PoolCall(x, tiling)


def _run_triton(call: PoolCall) -> Tensor:
    return segment_means_by_triton(call.x, call.tiling.bounds(call.x.device).contiguous())


def _run_torch(call: PoolCall) -> Tensor:
    """Mean of the tokens of each tile, in float32."""
    x, tiling = call.x, call.tiling
    sizes = tiling.sizes(x.device)[..., None]
    if tiling.tile is not None:
        padded = F.pad(x, (0, 0, 0, -tiling.length % tiling.tile))
        return padded.unflatten(2, (-1, tiling.tile)).float().sum(3) / sizes
    sums = segment_sums(x, tiling.tile_of_token(x.device), tiling.tiles)
    return sums / sizes.clamp(min=1)


# Plain torch is the definition too: there is nothing simpler to compare it with.
BACKENDS: tuple[Backend[PoolCall], ...] = (
    Backend("triton", lambda call: why_not_triton(call.x), _run_triton),
    Backend("torch", anywhere, _run_torch),
)
