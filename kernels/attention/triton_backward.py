"""Runs the gradient kernels of tile attention; nothing here waits for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import arch_of
from ..tile_map import TileMap
from ..triton_launch import block_of, shared_strides
from . import triton_backend
from .call import LOG2_E, AttentionCall
from .triton_backend import MAX_HEAD_DIM_WITH_GRADIENT, Blocks


def why_not(call: AttentionCall) -> str | None:
    """Why the kernels cannot run this call with gradients, None if they can."""
    reason = triton_backend.why_not(call)
    dim = call.q.shape[3]
    if reason is None and dim > MAX_HEAD_DIM_WITH_GRADIENT:
        return f"the head dimension is at most {MAX_HEAD_DIM_WITH_GRADIENT}, got {dim}"
    return reason


def run(
    call: AttentionCall,
    output: Tensor,
    lse: Tensor,
    d_output: Tensor,
    d_lse: Tensor | None,
    more: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, in the dtype and layout of each.

    Args:
        call: with tiles of fixed size, without marking and centroids.
        output: of the forward, `(B, H, Lq, D)`.
        lse: of the forward, float32 `(B, H, Lq)`.
        d_output: gradient of the output.
        d_lse: gradient of the lse; None for 0.
        more: float32 `(B, Hkv, Lk, D)`, contiguous, added to the gradient of v.
    """
    from .triton_backward_kernel import key_gradient_kernel, query_gradient_kernel

    q, k, v, tile_map = call.q, call.k, call.v, call.tile_map
    batch, heads, q_len, _ = q.shape
    delta = row_product(output, d_output)
    if d_lse is not None:
        delta -= d_lse
    # A row without keys: 2^(score - inf) is 0, whatever the score and the gradient of its lse.
    empty = lse == -torch.inf
    delta.masked_fill_(empty, 0.0)
    log2_sum = (lse * LOG2_E).masked_fill_(empty, torch.inf)
    d_q, d_k, d_v = (torch.empty_like(x) for x in (q, k, v))
    mask = None if call.mask is None else call.mask.view(torch.uint8)
    mask_strides = (*shared_strides(mask, 1), 0 if mask is None else mask.stride(3))
    scales = (call.scale, call.scale * LOG2_E)
    inputs = (*q.stride(), *k.stride(), *v.stride(), *d_output.stride())

    flags, blocks = query_flags_for(call, arch_of(q.device))
    indices = tile_map.indices
    if indices.stride(-1) != 1:
        indices = indices.contiguous()
    counts = tile_map.counts.contiguous()
    programs = tile_map.q_tiles * -(-flags["Q_TILE"] // blocks.rows)
    query_gradient_kernel[(programs, batch * heads)](
        q,
        k,
        v,
        d_output,
        log2_sum,
        delta,
        d_q,
        indices,
        counts,
        mask,
        *inputs,
        *d_q.stride(),
        *mask_strides,
        *shared_strides(indices, 3),
        *shared_strides(counts, 2),
        heads,
        q_len,
        tile_map.k_len,
        *scales,
        **flags,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )

    flags, blocks = key_flags_for(call, arch_of(q.device), more is not None)
    turned = TileMap.from_mask(
        tile_map.to_mask().transpose(-1, -2), tile_map.k_tiling, tile_map.q_tiling
    )
    programs = tile_map.k_tiles * -(-flags["K_TILE"] // blocks.columns)
    key_gradient_kernel[(programs, batch * k.shape[1])](
        q,
        k,
        v,
        d_output,
        log2_sum,
        delta,
        d_k,
        d_v,
        more,
        turned.indices,
        turned.counts,
        mask,
        *inputs,
        *d_k.stride(),
        *d_v.stride(),
        *mask_strides,
        *shared_strides(turned.indices, 3),
        *shared_strides(turned.counts, 2),
        heads,
        q_len,
        tile_map.k_len,
        *scales,
        **flags,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    return d_q, d_k, d_v


def row_product(a: Tensor, b: Tensor) -> Tensor:
    """`rowsum(a * b)` of `(B, H, L, D)`, float32 `(B, H, L)`."""
    from .triton_backward_kernel import row_product_kernel

    batch, heads, length, dim = a.shape
    out = torch.empty(a.shape[:3], dtype=torch.float32, device=a.device)
    row_product_kernel[(-(-length // 32), batch * heads)](
        a,
        b,
        out,
        *a.stride(),
        *b.stride(),
        heads,
        length,
        D=dim,
        BLOCK_D=block_of(dim),
        BLOCK_L=32,
        num_warps=4,
    )
    return out


def query_flags_for(call: AttentionCall, arch: int | str) -> tuple[dict[str, Any], Blocks]:
    """Compile-time flags and blocks of the kernel that owns rows."""
    flags, q_tile, k_tile = _flags(call)
    most = _most(call, arch)
    blocks = Blocks(
        min(most.rows, block_of(q_tile)),
        min(most.columns, block_of(k_tile)),
        most.warps,
        most.stages,
    )
    flags |= {
        "BLOCK_M": blocks.rows,
        "BLOCK_N": blocks.columns,
        "EVEN_K": k_tile % blocks.columns == 0 and call.tile_map.k_len % k_tile == 0,
    }
    return flags, blocks


def key_flags_for(
    call: AttentionCall, arch: int | str, more: bool
) -> tuple[dict[str, Any], Blocks]:
    """The same of the kernel that owns keys, which holds two sums."""
    flags, q_tile, k_tile = _flags(call)
    most = _most_keys(call, arch)
    blocks = Blocks(
        min(most.rows, block_of(q_tile)),
        min(most.columns, block_of(k_tile)),
        most.warps,
        most.stages,
    )
    flags |= {"BLOCK_M": blocks.rows, "BLOCK_N": blocks.columns, "MORE": more}
    return flags, blocks


def _flags(call: AttentionCall) -> tuple[dict[str, Any], int, int]:
    q_tile, k_tile = call.tile_map.q_tiling.tile, call.tile_map.k_tiling.tile
    assert q_tile is not None and k_tile is not None
    dim = call.q.shape[3]
    flags = {
        "GROUP": call.group,
        "D": dim,
        "BLOCK_D": block_of(dim),
        "Q_TILE": q_tile,
        "K_TILE": k_tile,
        "MASK": 0 if call.mask is None else 1,
        "PRECISION": "ieee",
    }
    return flags, q_tile, k_tile


def _most(call: AttentionCall, arch: int | str) -> Blocks:
    """Each choice is held against registers and shared memory, see `..aot`."""
    dim = call.q.shape[3]
    if call.q.element_size() == 4:
        return Blocks(32, 32, 8, 1) if dim <= 64 else Blocks(16, 32, 4, 1)
    if isinstance(arch, str):
        return Blocks(64, 64, 4, 1)
    if dim <= 64:
        return Blocks(128, 64, 8, 2)
    return Blocks(128 if 90 <= arch < 120 else 64, 64, 8, 2)


def _most_keys(call: AttentionCall, arch: int | str) -> Blocks:
    dim = call.q.shape[3]
    if call.q.element_size() == 4:
        return Blocks(32 if dim <= 64 else 16, 32 if dim <= 64 else 16, 8, 1)
    if isinstance(arch, str):
        return Blocks(32, 64, 4, 1)
    if 90 <= arch < 120:
        return Blocks(64, 64, 4 if dim <= 64 else 8, 2)
    return Blocks(32, 64, 4 if dim <= 64 else 8, 2)
