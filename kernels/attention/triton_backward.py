"""Runs the gradient kernels of tile attention; nothing here waits for the device."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..dispatch import arch_of
from ..tile_map import TileMap
from ..triton_common import Launch, block_of, shared_strides
from .call import LOG2_E, AttentionCall
from .triton_backend import Blocks, lists_of


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
    delta = row_product(output, d_output)
    if d_lse is not None:
        delta -= d_lse
    # A row without keys: 2^(score - inf) is 0, whatever the score and the gradient of its lse.
    empty = lse == -torch.inf
    delta.masked_fill_(empty, 0.0)
    log2_sum = (lse * LOG2_E).masked_fill_(empty, torch.inf)
    rows = (d_output, log2_sum, delta)
    return _query_gradient(call, rows), *_key_gradients(call, rows, more)


def _query_gradient(call: AttentionCall, rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The gradient of q.

    Args:
        call: see `run`.
        rows: gradient of the output, log2 of the sum of exponentials, and delta of each row.
    """
    from .triton_backward_kernel import query_gradient_kernel

    q, tile_map = call.q, call.tile_map
    d_q = torch.empty_like(q)
    launch = query_launch(call, arch_of(q.device))
    indices, counts = lists_of(tile_map)
    mask, mask_strides = _key_mask(call)
    programs = tile_map.q_tiles * -(-launch.flags["Q_TILE"] // launch.flags["BLOCK_M"])
    query_gradient_kernel[(programs, q.shape[0] * q.shape[1])](
        *(q, call.k, call.v, *rows, d_q, indices, counts, mask),
        *_input_strides(call, rows[0]),
        *d_q.stride(),
        *mask_strides,
        *shared_strides(indices, 3),
        *shared_strides(counts, 2),
        *_sizes(call),
        **launch.options,
    )
    return d_q


def _key_gradients(
    call: AttentionCall, rows: tuple[Tensor, Tensor, Tensor], more: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradients of k and v; see `_query_gradient` and `run`."""
    from .triton_backward_kernel import key_gradient_kernel

    k, tile_map = call.k, call.tile_map
    d_k, d_v = torch.empty_like(k), torch.empty_like(call.v)
    launch = key_launch(call, arch_of(k.device), more is not None)
    turned = TileMap.from_mask(
        tile_map.to_mask().transpose(-1, -2), tile_map.k_tiling, tile_map.q_tiling
    )
    mask, mask_strides = _key_mask(call)
    programs = tile_map.k_tiles * -(-launch.flags["K_TILE"] // launch.flags["BLOCK_N"])
    key_gradient_kernel[(programs, k.shape[0] * k.shape[1])](
        *(call.q, k, call.v, *rows, d_k, d_v, more, turned.indices, turned.counts, mask),
        *_input_strides(call, rows[0]),
        *d_k.stride(),
        *d_v.stride(),
        *mask_strides,
        *shared_strides(turned.indices, 3),
        *shared_strides(turned.counts, 2),
        *_sizes(call),
        **launch.options,
    )
    return d_k, d_v


def _key_mask(call: AttentionCall) -> tuple[Tensor | None, tuple[int, int]]:
    """The mask of keys as the kernels read it, and its strides over batch items and keys."""
    if call.mask is None:
        return None, (0, 0)
    mask = call.mask.view(torch.uint8)
    return mask, (shared_strides(mask, 1)[0], mask.stride(3))


def _input_strides(call: AttentionCall, d_output: Tensor) -> tuple[int, ...]:
    return (*call.q.stride(), *call.k.stride(), *call.v.stride(), *d_output.stride())


def _sizes(call: AttentionCall) -> tuple[float, ...]:
    """Heads, queries, keys, and the scale for natural and binary exponentials."""
    lengths = (call.q.shape[1], call.q.shape[2], call.tile_map.k_len)
    return (*lengths, call.scale, call.scale * LOG2_E)


def row_product(a: Tensor, b: Tensor) -> Tensor:
    """`rowsum(a * b)` of `(B, H, L, D)`, float32 `(B, H, L)`."""
    from .triton_backward_kernel import row_product_kernel

    batch, heads, length, dim = a.shape
    out = torch.empty(a.shape[:3], dtype=torch.float32, device=a.device)
    launch = row_product_launch(dim)
    row_product_kernel[(-(-length // launch.flags["BLOCK_L"]), batch * heads)](
        a,
        b,
        out,
        *a.stride(),
        *b.stride(),
        heads,
        length,
        **launch.options,
    )
    return out


def row_product_launch(dim: int) -> Launch:
    """Flags and options of `row_product`."""
    return Launch({"D": dim, "BLOCK_D": block_of(dim), "BLOCK_L": 32}, 4)


def query_launch(call: AttentionCall, arch: int | str) -> Launch:
    """Flags and options of the kernel that owns rows."""
    launch, k_tile = _launch(call, _most(call, arch))
    columns = launch.flags["BLOCK_N"]
    even = k_tile % columns == 0 and call.tile_map.k_len % k_tile == 0
    return replace(launch, flags={**launch.flags, "EVEN_K": even})


def key_launch(call: AttentionCall, arch: int | str, more: bool) -> Launch:
    """The same of the kernel that owns keys, which holds two sums."""
    launch, _ = _launch(call, _most_keys(call, arch))
    return replace(launch, flags={**launch.flags, "MORE": more})


def _launch(call: AttentionCall, most: Blocks) -> tuple[Launch, int]:
    """What both kernels share, with the given blocks or smaller ones; and the keys of a tile."""
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
        "BLOCK_M": min(most.rows, block_of(q_tile)),
        "BLOCK_N": min(most.columns, block_of(k_tile)),
    }
    return Launch(flags, most.warps, most.stages), k_tile


def _most(call: AttentionCall, arch: int | str) -> Blocks:
    """Each choice is checked against registers and shared memory, see `..aot`."""
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
