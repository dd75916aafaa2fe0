"""One vector for each tile of tokens, and one score for each tile of the attention matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import triton_launch
from ..dispatch import Backend, choose
from ..precision import own_precision
from ..tiling import Tiling
from . import torch_backend
from .call import PoolCall, check_call

__all__ = ["pool_tiles", "pooled_scores"]

# Plain torch is the definition too: there is nothing simpler to hold it against.
BACKENDS: tuple[Backend[PoolCall], ...] = (
    Backend(
        "triton",
        lambda call: triton_launch.why_not(call.x),
        lambda call: triton_launch.segment_means(
            call.x, call.tiling.bounds(call.x.device).contiguous()
        ),
        by_name_only=lambda call: call.x.device.type == "cpu",
    ),
    Backend("torch", torch_backend.why_not, torch_backend.run),
)


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
    call = check_call(x, tiling)
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
