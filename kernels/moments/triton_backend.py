"""Attention to moments by Triton kernels; nothing here waits for the device.

In turn: u of every tile, by a product of means; one kernel for the softmax over mean keys, which
leaves the mean weights `a_j / (1 + u_j/2)` of each query tile; and for some key heads at a time,
their covariances, one matrix product that adds them up by those weights, and a kernel that adds
`s C q` to the output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.call import LOG2_E
from ..dispatch import arch_of, why_not_triton
from ..pooling import pool_tiles
from ..triton_common import SMALL_SHARED, Launch, block_of
from . import triton_moments
from .call import MomentAttentionCall
from .moments import score_variance

# Elements of the covariances that are held at once, and of their sums: 32 MiB in half precision,
# which stays in the caches of large devices. One key head and one query tile at least.
_CHUNK = 1 << 24
_ALIGNED = 8  # elements: rows of a matrix product that begin at 16 bytes


def why_not(call: MomentAttentionCall) -> str | None:
    """Why the kernels cannot run this call, None if they can."""
    tensors = (call.k, call.q, call.v)
    return why_not_triton(*tensors, others=call.moments or ()) or triton_moments.why_mixed(*tensors)


def attend_launch(call: MomentAttentionCall, arch: int | str) -> Launch:
    """Flags and options of the softmax over means, for a call on a device."""
    dim, half = call.q.shape[3], call.q.element_size() == 2
    if isinstance(arch, str):
        rows, columns, warps, stages = _attend_hip(dim, half)
    elif not half:
        rows, columns, warps, stages = 32 if dim <= 64 else 16, 32, 8, 2
    elif dim <= 128:
        rows, columns, warps, stages = 128, 64, 8, 3
        if dim > 64 and arch in SMALL_SHARED:
            stages = 2
        elif dim > 64 and arch < 90:
            columns = 32
    else:
        rows, columns, warps, stages = 64, 32 if arch in SMALL_SHARED else 64, 8, 2
    flags = {
        "GROUP": call.group,
        "D": dim,
        "BLOCK_D": block_of(dim),
        "BLOCK_M": min(rows, block_of(call.q_tile)),
        "BLOCK_T": columns,
        "Q_TILE": call.q_tile,
        "PRECISION": "ieee",
    }
    return Launch(flags, warps, stages)


def _attend_hip(dim: int, half: bool) -> tuple[int, int, int, int]:
    if not half:
        return 64 if dim <= 64 else 32 if dim <= 128 else 16, 32, 8, 1
    return (128, 64, 8 if dim <= 64 else 4, 1) if dim <= 128 else (64, 64, 4, 1)


def blocks_launch(block: int) -> Launch:
    """Flags and options of the lists of blocks, for blocks of so many key tiles."""
    return Launch({"BLOCK_T": block}, 1, 1)


def expand_launch(call: MomentAttentionCall, arch: int | str) -> Launch:
    """Flags and options of the product with C."""
    dim, dtype = call.q.shape[3], call.q.dtype
    half = call.q.element_size() == 2
    wide = dtype != triton_moments.mixing_dtype(call.q)
    # float16 and bfloat16 are exact in TF32, which AMD's compiler takes for some chips only.
    tf32 = wide and not isinstance(arch, str)
    rows, channels, features = 64, 64, 32
    if half and not wide:
        rows, channels, features = 128, 128, 32 if arch in SMALL_SHARED else 64
    if not half or (wide and not tf32):
        rows, channels, features = 32, 32, 32
    block_d = block_of(dim)
    flags = {
        "GROUP": call.group,
        "D": dim,
        "BLOCK_F": min(features, block_d),
        "BLOCK_C": min(channels, block_d),
        "BLOCK_R": min(rows, block_of(call.q_tile)),
        "Q_TILE": call.q_tile,
        "WIDE": wide,
        "PRECISION": "tf32" if tf32 else "ieee",
    }
    return Launch(flags, 8 if half and not wide else 4, 2)


def run(call: MomentAttentionCall) -> tuple[Tensor, Tensor]:
    """See `moment_attention`."""
    out, lse, shares = _attend(call)
    batch, kv_heads = call.k.shape[:2]
    tiles, width = call.k_tiling.tiles, call.q.shape[3] ** 2
    # Query tiles of the heads that share keys stand one behind the other.
    shares = shares.view(batch * kv_heads, call.group * call.q_tiling.tiles, -1)[:, :, :tiles]
    together = max(1, _CHUNK // (width * max(tiles, shares.shape[1])))
    at_once = max(1, _CHUNK // (width * together))
    for first in range(0, batch * kv_heads, together):
        own = shares[first : first + together]
        covariance = triton_moments.covariances(call.moments_call, first, len(own)).flatten(2)
        for first_tile in range(0, own.shape[1], at_once):
            mixed = own[:, first_tile : first_tile + at_once] @ covariance
            _expand(call, mixed, out, first, first_tile)
    return out, lse


def _attend(call: MomentAttentionCall) -> tuple[Tensor, Tensor, Tensor]:
    """Output of the mean values, log-sum-exp, and weights `(B, H, Tq, T or some more)`."""
    from .triton_kernels import attend_kernel

    q = call.q
    launch = attend_launch(call, arch_of(q.device))
    moments = call.moments or triton_moments.run(call.moments_call)
    u = score_variance(pool_tiles(q, call.q_tiling, backend="triton"), moments, call.scale)
    keys, values = (x.to(q.dtype).contiguous() for x in (moments.keys, moments.values))
    sizes = moments.sizes.contiguous()
    marginal = call.marginal if call.marginal.stride(3) == 1 else call.marginal.contiguous()
    marginal = marginal.view(torch.uint8)
    strides = (*marginal.stride()[:3], sizes.stride(0) if sizes.shape[0] > 1 else 0)
    batch, heads, q_len, _ = q.shape
    q_tiles, tiles = call.q_tiling.tiles, call.k_tiling.tiles
    parts = -(-call.q_tile // launch.flags["BLOCK_M"])
    lists, counts = _blocks(call, launch.flags["BLOCK_T"], marginal, sizes, strides)
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    shares = torch.zeros(
        (batch, heads, q_tiles, parts, -(-tiles // _ALIGNED) * _ALIGNED),
        dtype=triton_moments.mixing_dtype(q),
        device=q.device,
    )
    attend_kernel[(q_tiles * parts, batch * heads)](
        *(q, keys, values, marginal, sizes, u.contiguous(), lists, counts),
        *(out, lse, shares),
        *q.stride(),
        *out.stride(),
        *strides,
        shares.shape[4],
        heads,
        q_len,
        q_tiles,
        tiles,
        lists.shape[3],
        call.scale * LOG2_E,
        **launch.options,
    )
    return out, lse, shares[:, :, :, 0] if parts == 1 else shares.sum(3)


def _blocks(
    call: MomentAttentionCall,
    block: int,
    marginal: Tensor,
    sizes: Tensor,
    strides: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """The blocks of key tiles in which a query tile has marginal ones: lists `(B, H, Tq, blocks)`
    and their counts `(B, H, Tq)`, int32."""
    from .triton_kernels import blocks_kernel

    batch, heads = call.q.shape[:2]
    q_tiles, tiles = call.q_tiling.tiles, call.k_tiling.tiles
    blocks = -(-tiles // block)
    shape = (batch, heads, q_tiles)
    lists = torch.empty((*shape, blocks), dtype=torch.int32, device=call.q.device)
    counts = torch.empty(shape, dtype=torch.int32, device=call.q.device)
    blocks_kernel[(q_tiles, batch * heads)](
        *(marginal, sizes, lists, counts),
        *strides,
        heads,
        q_tiles,
        tiles,
        blocks,
        **blocks_launch(block).options,
    )
    return lists, counts


def _expand(
    call: MomentAttentionCall, mixed: Tensor, out: Tensor, first: int, first_tile: int
) -> None:
    """Add `s C q` to the output of the query tiles whose C is given, `(slots, tiles, D D)`."""
    from .triton_kernels import expand_kernel

    q = call.q
    launch = expand_launch(call, arch_of(q.device))
    blocks = -(-call.q_tile // launch.flags["BLOCK_R"])
    blocks *= -(-q.shape[3] // launch.flags["BLOCK_C"])
    expand_kernel[(mixed.shape[1] * blocks, mixed.shape[0])](
        q,
        mixed,
        out,
        *q.stride(),
        *out.stride(),
        call.k.shape[1],
        first,
        first_tile,
        mixed.shape[1],
        q.shape[2],
        call.q_tiling.tiles,
        call.scale,
        **launch.options,
    )
