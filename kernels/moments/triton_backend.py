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
from ..attention.triton_backend import SMALL_SHARED
from ..dispatch import arch_of
from ..pooling import pool_tiles
from ..triton_launch import Launch, block_of
from . import triton_moments
from .call import MomentCall
from .moments import score_variance

# Elements of the covariances that are held at once, and of their sums: 32 MiB in half precision,
# which stays in the caches of large devices. One key head and one query tile at least.
_CHUNK = 1 << 24
_ALIGNED = 8  # elements: rows of a matrix product that begin at 16 bytes


def why_not(call: MomentCall) -> str | None:
    """Why the kernels cannot run this call, None if they can."""
    given = () if call.moments is None else call.moments
    return triton_moments.why_not_for(call.k, call.q, call.v) or triton_moments.why_gradient(
        call.q, call.k, call.v, *given
    )


def attend_launch(call: MomentCall, arch: int | str) -> Launch:
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


def expand_launch(call: MomentCall, arch: int | str) -> Launch:
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


def run(call: MomentCall) -> tuple[Tensor, Tensor]:
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
        covariance = triton_moments.covariances(call.own_moments, first, len(own)).flatten(2)
        for first_tile in range(0, own.shape[1], at_once):
            mixed = own[:, first_tile : first_tile + at_once] @ covariance
            _expand(call, mixed, out, first, first_tile)
    return out, lse


def _attend(call: MomentCall) -> tuple[Tensor, Tensor, Tensor]:
    """Output of the mean values, log-sum-exp, and weights `(B, H, Tq, T or some more)`."""
    from .triton_kernels import attend_kernel, blocks_kernel

    q, device = call.q, call.q.device
    launch = attend_launch(call, arch_of(device))
    moments = call.moments or triton_moments.run(call.own_moments)
    u = score_variance(pool_tiles(q, call.q_tiling, backend="triton"), moments, call.scale)
    keys, values = (x.to(q.dtype).contiguous() for x in (moments.keys, moments.values))
    sizes = moments.sizes.contiguous()
    marginal = call.marginal if call.marginal.stride(3) == 1 else call.marginal.contiguous()
    marginal = marginal.view(torch.uint8)
    strides = (*marginal.stride()[:3], sizes.stride(0) if sizes.shape[0] > 1 else 0)
    batch, heads, q_len, _ = q.shape
    q_tiles, tiles = call.q_tiling.tiles, call.k_tiling.tiles
    blocks = -(-tiles // launch.flags["BLOCK_T"])
    parts = -(-call.q_tile // launch.flags["BLOCK_M"])
    lists = torch.empty((batch, heads, q_tiles, blocks), dtype=torch.int32, device=device)
    counts = torch.empty((batch, heads, q_tiles), dtype=torch.int32, device=device)
    blocks_kernel[(q_tiles, batch * heads)](
        marginal,
        sizes,
        lists,
        counts,
        *strides,
        heads,
        q_tiles,
        tiles,
        blocks,
        BLOCK_T=launch.flags["BLOCK_T"],
        num_warps=1,
    )
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=device)
    shares = torch.zeros(
        (batch, heads, q_tiles, parts, -(-tiles // _ALIGNED) * _ALIGNED),
        dtype=triton_moments.mixing_dtype(q),
        device=device,
    )
    attend_kernel[(q_tiles * parts, batch * heads)](
        q,
        keys,
        values,
        marginal,
        sizes,
        u.contiguous(),
        lists,
        counts,
        out,
        lse,
        shares,
        *q.stride(),
        *out.stride(),
        *strides,
        shares.shape[4],
        heads,
        q_len,
        q_tiles,
        tiles,
        blocks,
        call.scale * LOG2_E,
        **launch.options,
    )
    return out, lse, shares[:, :, :, 0] if parts == 1 else shares.sum(3)


def _expand(call: MomentCall, mixed: Tensor, out: Tensor, first: int, first_tile: int) -> None:
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
