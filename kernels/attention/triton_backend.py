"""Runs the Triton kernel: gate, block sizes, work list and launch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..dispatch import arch_of, triton_version, why_not_triton
from ..tile_map import TileMap
from ..tiling import Tiling
from ..triton_common import SMALL_SHARED, Launch, block_of, shared_strides
from .call import LOG2_E, AttentionCall, TileAttentionOutput
from .centroids import centroid_bias
from .int8 import key_mean, without_mean

# The kernel that owns keys holds two sums of this width.
MAX_HEAD_DIM_WITH_GRADIENT = 128


@dataclass(frozen=True)
class Blocks:
    """How one program is cut.

    Attributes:
        rows: queries of a program, a power of two.
        columns: keys of one visit, a power of two.
        warps: of a program.
        stages: of the pipeline over visits.
    """

    rows: int
    columns: int
    warps: int
    stages: int


def why_not(call: AttentionCall) -> str | None:
    """Why the kernel cannot run this call, None if it can."""
    reason = why_not_triton(call.q, gradients=True) or call.why_no_gradient()
    if reason is None and call.needs_grad:
        reason = why_no_backward(call)
    if reason is not None:
        return reason
    if call.marking is not None and call.marking.skip_now:
        arch = arch_of(call.q.device)
        if isinstance(arch, int) and 100 <= arch < 120 and triton_version() < (3, 9):
            return "skip_now does not compile for this device before Triton 3.9"
        q_tile, k_tile = call.tile_map.q_tiling.tile, call.tile_map.k_tiling.tile
        if q_tile is None or k_tile is None:
            return "skip_now needs tiles of fixed size, so that one program sees a whole tile"
        most = _most(call, arch)
        if q_tile > most.rows or k_tile > most.columns:
            return (
                f"skip_now needs tiles of at most {most.rows} x {most.columns} for this head "
                f"dimension and dtype, so that one program sees a whole tile; got {q_tile} x "
                f"{k_tile}"
            )
    return None


def why_no_backward(call: AttentionCall) -> str | None:
    """Why the kernels have no backward for the head dimension of a call, None if they have one."""
    dim, limit = call.q.shape[3], MAX_HEAD_DIM_WITH_GRADIENT
    if dim > limit:
        return f"with gradients, the head dimension is at most {limit}, got {dim}"
    return None


def blocks_for(call: AttentionCall, arch: int | str) -> Blocks:
    """Block sizes for a call: the most that a device takes, or less where tiles are smaller.

    Each choice is checked against the registers and the shared memory of its builds, see `..aot`.

    Args:
        call: what is run.
        arch: of the device, as `arch_of` gives it.
    """
    q_tile, k_tile = call.tile_map.q_tiling.tile, call.tile_map.k_tiling.tile
    most = _most(call, arch)
    return Blocks(
        min(most.rows, block_of(q_tile or most.rows)),
        min(most.columns, block_of(k_tile or most.columns)),
        most.warps,
        most.stages,
    )


def _most(call: AttentionCall, arch: int | str) -> Blocks:
    """The blocks for tiles of any size."""
    most = _most_in_floats(call, arch)
    if call.precision == "model" or call.q.element_size() == 4:
        return most
    # Scores that come as integers are turned into floats in registers of their own.
    dim, marks, tile_map = call.q.shape[3], call.marking is not None, call.tile_map
    variable = tile_map.q_tiling.tile is None or tile_map.k_tiling.tile is None
    ragged = call.mask is not None or tile_map.k_len % (tile_map.k_tiling.tile or 1) != 0
    if isinstance(arch, str):
        return replace(most, warps=4) if ragged and 64 < dim <= 128 else most
    if 100 <= arch < 120:
        if dim <= 64 and (marks or call.centroids is not None):
            return replace(most, warps=8)
        return replace(most, columns=32) if 64 < dim <= 128 and variable else most
    if arch < 90 and 64 < dim <= 128:
        skip_now = call.marking is not None and call.marking.skip_now
        if ragged or (arch > 80 and marks and not skip_now):
            return replace(most, columns=32)
    return most


def _most_in_floats(call: AttentionCall, arch: int | str) -> Blocks:
    dim = call.q.shape[3]
    variable = call.tile_map.q_tiling.tile is None or call.tile_map.k_tiling.tile is None
    if isinstance(arch, str):
        return _most_hip(dim, call.q.element_size(), variable)
    marks = call.marking is not None
    # Their matrix instructions read both sides and add up in registers, of which none are left
    # over; those of 90 to 119 read and add up elsewhere.
    crowded = not 90 <= arch < 120
    if call.q.element_size() == 4:
        # Products in full float32 are unrolled: larger blocks spill by the kilobyte.
        if dim <= 64:
            return Blocks(64, 32, 8, 2)
        if dim <= 128 and (not marks or 100 <= arch < 120):
            return Blocks(32, 32, 8, 2)
        return Blocks(16, 32, 4 if dim <= 128 else 8, 2)
    # A second loop over keys, whose bias takes registers too.
    centroids = call.centroids is not None
    if dim <= 64:
        many = crowded and (marks or centroids or arch >= 120)
        return Blocks(128, 32 if centroids and arch >= 90 else 64, 8 if many else 4, 3)
    if dim <= 128:
        skip_now = call.marking is not None and call.marking.skip_now
        if not crowded:
            return Blocks(
                128, 32 if arch >= 100 and variable and (marks or centroids) else 64, 8, 3
            )
        if variable or (marks and not skip_now):
            narrow = arch >= 120 or (variable and (marks or arch > 80))
            return Blocks(64, 32 if narrow else 64, 4, 3)
        return Blocks(128, 32 if arch >= 120 and not skip_now else 64, 8, 3)
    return Blocks(64, 32 if arch in SMALL_SHARED else 64, 8, 2)


def _most_hip(dim: int, element_size: int, variable: bool) -> Blocks:
    """Fewer warps have more registers each: 4 may have 512."""
    if element_size == 4:
        return Blocks(64 if dim <= 64 else 32 if dim <= 128 else 16, 32, 8, 1)
    if dim <= 64:
        return Blocks(128, 64, 4, 1)
    if dim <= 128:
        return Blocks(128, 64, 4 if variable else 8, 1)
    return Blocks(64, 64, 4, 1)


def launch_for(call: AttentionCall, arch: int | str) -> Launch:
    """The kernel's compile-time flags for a call, block sizes among them, and its options."""
    k_tile = call.tile_map.k_tiling.tile
    dim = call.q.shape[3]
    blocks = blocks_for(call, arch)
    mask = 0
    if call.mask is not None:
        mask = 1 if call.mask.shape[2] == 1 else 2
    flags = {
        "GROUP": call.group,
        "D": dim,
        # An integer product adds up 32 channels at least.
        "BLOCK_D": block_of(max(dim, 32) if call.precision == "int8" else dim),
        "BLOCK_M": blocks.rows,
        "BLOCK_N": blocks.columns,
        "Q_TILE": call.tile_map.q_tiling.tile or 0,
        "K_TILE": k_tile or 0,
        "MASK": mask,
        "EVEN_K": k_tile is not None
        and k_tile % blocks.columns == 0
        and call.tile_map.k_len % k_tile == 0,
        "LSE": call.return_lse,
        "MARK": call.marking is not None,
        "SKIP_NOW": call.marking is not None and call.marking.skip_now,
        "CENTROIDS": call.centroids is not None,
        "INT8": call.precision == "int8",
        # Not TF32: its scores have 10 bits, and marks would differ from those of other backends.
        "PRECISION": "ieee",
    }
    return Launch(flags, blocks.warps, blocks.stages)


def run(call: AttentionCall) -> TileAttentionOutput:
    """Launch the kernel; nothing waits for the device."""
    from .triton_kernel import tile_attention_kernel

    v, tile_map, device = call.v, call.tile_map, call.q.device
    batch, heads, q_len, _ = call.q.shape
    launch = launch_for(call, arch_of(device))
    output = torch.empty_like(call.q)
    q, k, scales, constants, centroids = _operands(call)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=device) if call.return_lse else None
    keep = thresholds = None
    if call.marking is not None:
        keep = call.first_kept()
        thresholds = call.marking.thresholds(heads, device)
    marks = None if keep is None else keep.view(torch.uint8)
    indices, counts = lists_of(tile_map)
    work_tile, work_row, programs = _work(tile_map, launch.flags["BLOCK_M"], device)
    q_bounds, k_bounds = (
        None if tiling.is_fixed else tiling.bounds(device).contiguous()
        for tiling in (tile_map.q_tiling, tile_map.k_tiling)
    )
    mask = None if call.mask is None else call.mask.view(torch.uint8)
    tile_attention_kernel[(programs, batch * heads)](
        *(q, k, v, output, lse, marks, thresholds, indices, counts, work_tile, work_row),
        *(q_bounds, k_bounds, mask, *centroids, *scales),
        *q.stride(),
        *k.stride(),
        *v.stride(),
        *output.stride(),
        *shared_strides(mask, 4),
        *shared_strides(indices, 3),
        *shared_strides(counts, 2),
        *shared_strides(work_tile, 2),
        *shared_strides(q_bounds, 2),
        *shared_strides(k_bounds, 2),
        *shared_strides(centroids[2], 2),
        *(heads, q_len, tile_map.k_len, tile_map.q_tiles, tile_map.k_tiles, programs),
        call.scale * LOG2_E,
        **launch.options,
    )
    if lse is not None and constants is not None:
        lse += constants * call.scale
    return TileAttentionOutput(output, lse, keep)


class _Operands(NamedTuple):
    """What the kernel reads for scores.

    Attributes:
        q: queries.
        k: keys.
        scales: of the tokens of both, where they are integers.
        constants: what the scores of each query lack.
        centroids: mean keys, mean values and bias.
    """

    q: Tensor
    k: Tensor
    scales: tuple[Tensor | None, Tensor | None]
    constants: Tensor | None
    centroids: tuple[Tensor | None, Tensor | None, Tensor | None]


def _operands(call: AttentionCall) -> _Operands:
    if call.precision == "model":
        return _Operands(call.q, call.k, (None, None), None, _centroids(call))
    mean = key_mean(call.k)
    k, k_scale, _ = _integers(call.k, mean, subtract=True)
    q, q_scale, constants = _integers(call.q, mean, subtract=False)
    centroids = _centroids(replace(call, centroids=without_mean(call, mean)))
    return _Operands(q, k, (q_scale, k_scale), constants, centroids)


def _integers(x: Tensor, mean: Tensor, *, subtract: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens as integers and their scales, see `.int8`.

    Args:
        x: queries or keys, any strides.
        mean: of the keys, float32 `(B, Hkv, 1, D)`.
        subtract: whether to take it off; if not, its product with each token comes third.
    """
    from ..triton_tokens import quantise_kernel

    batch, heads, length, dim = x.shape
    integers = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale, constant = torch.empty((2, *x.shape[:3]), dtype=torch.float32, device=x.device)
    launch = quantise_launch(dim, heads // mean.shape[1], subtract)
    quantise_kernel[(-(-length // launch.flags["BLOCK_L"]), batch * heads)](
        *(x, mean.contiguous(), integers, scale, constant),
        *x.stride(),
        heads,
        length,
        **launch.options,
    )
    return integers, scale, constant


def quantise_launch(dim: int, group: int, subtract: bool) -> Launch:
    """Flags and options of the kernel that makes integers."""
    flags = {"D": dim, "BLOCK_D": block_of(dim), "BLOCK_L": 32, "GROUP": group}
    return Launch({**flags, "SUBTRACT": subtract, "CONSTANT": not subtract}, 4)


def lists_of(tile_map: TileMap) -> tuple[Tensor, Tensor]:
    """Indices and counts of a map as the kernels read them."""
    indices = tile_map.indices
    if indices.stride(-1) != 1:
        indices = indices.contiguous()
    return indices, tile_map.counts.contiguous()


def _work(
    tile_map: TileMap, rows: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None, int]:
    """The work list, see `work_list` (None, None for fixed tiles), and the number of programs."""
    tile = tile_map.q_tiling.tile
    if tile is not None:
        return None, None, tile_map.q_tiles * -(-tile // rows)
    work = work_list(tile_map.q_tiling, rows, device)
    assert work is not None
    return *work, work[0].shape[-1]


def _centroids(call: AttentionCall) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Mean keys, mean values and bias as the kernel reads them."""
    if call.centroids is None:
        return None, None, None
    keys, values = (x.to(call.q.dtype).contiguous() for x in call.centroids[:2])
    return keys, values, centroid_bias(call).div_(call.scale).contiguous()


def work_list(tiling: Tiling, rows: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Which rows each program takes when query tiles vary in size; None for fixed tiles.

    There are as many programs as the worst case needs, known from the shapes alone, so nothing
    waits for the device; those too many get the tile number T and stop at once.

    Returns:
        int32 `(B|1, H|1, P)` each: the query tile of a program, and its first row.
    """
    if tiling.is_fixed:
        return None
    bounds = tiling.bounds(device)
    blocks = (bounds.diff(dim=-1) + rows - 1) // rows
    ends = blocks.cumsum(-1, dtype=torch.int32)
    programs = torch.arange(tiling.length // rows + tiling.tiles, dtype=torch.int32, device=device)
    programs = programs.expand(*bounds.shape[:2], -1).contiguous()
    tile = torch.searchsorted(ends, programs, right=True, out_int32=True)
    inside = tile.clamp(max=tiling.tiles - 1).long()
    first = programs - (ends - blocks).gather(-1, inside)
    return tile, (bounds.gather(-1, inside) + first * rows).int()
