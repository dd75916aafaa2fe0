"""Launches the kernel that makes moments and covariances of tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import why_not_triton
from ..triton_common import Launch, block_of
from .call import TileMomentsCall
from .moments import TileMoments, in_tiles, tile_of


def why_not(call: TileMomentsCall) -> str | None:
    """Why the kernel cannot run this call, None if it can."""
    return why_not_triton(call.k, call.v) or why_mixed(call.k, call.v)


def why_mixed(*tensors: Tensor) -> str | None:
    """That tensors `(B, H, L, D)` differ in what the kernels take to be the same, None if not."""
    x = tensors[0]
    if any(other.dtype != x.dtype or other.shape[3] != x.shape[3] for other in tensors):
        return "queries, keys and values differ in dtype or head dimension"
    return None


def mixing_dtype(x: Tensor) -> torch.dtype:
    """What covariances are held and added up in: bfloat16 for half precision, since a product of a
    key and a value may be beyond float16; their part of the output is the smaller one."""
    return torch.float32 if x.dtype == torch.float32 else torch.bfloat16


def launch_for(x: Tensor, tile: int, masked: bool, covariance: bool) -> Launch:
    """Flags and options of the kernel; checked against registers and shared memory, see `..aot`.

    Args:
        x: keys `(B, H, L, D)`.
        tile: tokens of a tile.
        masked: whether some keys do not count.
        covariance: Cov(v, k) instead of the other moments.
    """
    dim, half = x.shape[3], x.element_size() == 2
    block_d = block_of(dim)
    rows, channels = 32, block_d
    if covariance:
        rows, channels = 64 if half and block_d <= 128 else 32, 64 if half else 32
        if not half and block_d > 64:
            rows, channels = 16, 32 if block_d <= 128 else 16
    flags = {
        "D": dim,
        "BLOCK_D": block_d,
        "BLOCK_C": min(channels, block_d),
        "BLOCK_R": min(rows, block_of(tile)),
        "TILE": tile,
        "MASK": masked,
        "COVARIANCE": covariance,
        "PRECISION": "ieee",
    }
    return Launch(flags, 8 if block_d > 64 else 4, 2)


def run(call: TileMomentsCall) -> TileMoments:
    """Moments of all tiles."""
    k, tiling = call.k, call.tiling
    device = k.device
    if call.mask is None:
        sizes = tiling.sizes(device).float()
    else:
        sizes = in_tiles(call.mask[:, None].float(), tile_of(tiling)).sum(3)
    shape = (*k.shape[:2], tiling.tiles)
    keys, values, variance = (
        torch.empty((*shape, k.shape[3]), dtype=torch.float32, device=device) for _ in range(3)
    )
    spread = torch.empty(shape, dtype=torch.float32, device=device)
    launch = launch_for(k, tile_of(tiling), call.mask is not None, False)
    _run(call, (keys, values, variance, spread, None), 0, shape[0] * shape[1], launch)
    return TileMoments(sizes, keys, values, variance, spread)


def covariances(call: TileMomentsCall, first: int, count: int) -> Tensor:
    """Cov(v, k) of the tiles of some key heads, `(count, T, D, D)`, value channels down.

    Args:
        call: keys and values.
        first: key head, counted over all batch items.
        count: of key heads.
    """
    k, tile = call.k, tile_of(call.tiling)
    shape = (count, call.tiling.tiles, k.shape[3], k.shape[3])
    out = torch.empty(shape, dtype=mixing_dtype(k), device=k.device)
    launch = launch_for(k, tile, call.mask is not None, True)
    _run(call, (None, None, None, None, out), first, count, launch)
    return out


def _run(
    call: TileMomentsCall,
    outputs: tuple[Tensor | None, ...],
    first: int,
    count: int,
    launch: Launch,
) -> None:
    from .triton_kernels import moments_kernel

    k, v, mask = call.k, call.v, call.mask
    c_blocks = -(-k.shape[3] // launch.flags["BLOCK_C"])
    moments_kernel[(call.tiling.tiles * c_blocks, count)](
        k,
        v,
        None if mask is None else mask.view(torch.uint8),
        *outputs,
        *k.stride(),
        *v.stride(),
        *((0, 0) if mask is None else mask.stride()),
        k.shape[1],
        first,
        k.shape[2],
        call.tiling.tiles,
        **launch.options,
    )
