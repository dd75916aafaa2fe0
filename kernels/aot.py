"""Compile the Triton kernels ahead of time for several devices, without having any of them.

    python -m ditaccel.kernels.aot                     # write the table beside this file
    python -m ditaccel.kernels.aot --target sm_90      # one device, printed only

The table `aot_table.csv` holds registers, spills and shared memory of each build: as ptxas states
them on NVIDIA, as the assembly states them on AMD. A spill to memory, or more shared memory than
the device has, is an error. The table is for readers of the repository; wheels leave it out.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .attention import Marking, TileCentroids
from .attention.call import check_call
from .attention.triton_backend import flags_for
from .moments.builds import builds as moment_builds
from .sparse_linear.builds import builds as sparse_linear_builds
from .tile_map import TileMap
from .tiling import Tiling
from .triton_launch import block_of

TABLE = Path(__file__).with_name("aot_table.csv")
_TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


# Strides and sizes that are multiples of 16 at run time.
_ALIGNED = r"s_(q|k|v|out|x|y|a|b|do|dq|dk|dv)_[bhl]|channels?|width"


@dataclass(frozen=True)
class Target:
    """A device to compile for.

    Attributes:
        backend: `cuda` or `hip`.
        arch: compute capability times ten, or AMD's name.
        warp: threads of a warp.
        shared: bytes of shared memory that one program may take.
    """

    backend: str
    arch: int | str
    warp: int
    shared: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163 * 1024),
    "sm_89": Target("cuda", 89, 32, 99 * 1024),
    "sm_90": Target("cuda", 90, 32, 227 * 1024),
    "sm_100": Target("cuda", 100, 32, 227 * 1024),
    "sm_120": Target("cuda", 120, 32, 99 * 1024),
    "gfx942": Target("hip", "gfx942", 64, 64 * 1024),
}


@dataclass(frozen=True)
class Build:
    """One kernel with its compile-time flags.

    Attributes:
        name: for the table.
        kernel: of a module of this package, `module:function`.
        signature: argument name to type, without the flags.
        flags: compile-time flags.
        options: `num_warps`, `num_stages`.
    """

    name: str
    kernel: str
    signature: dict[str, str]
    flags: dict[str, Any]
    options: dict[str, int]


@dataclass(frozen=True)
class Resources:
    """A row of the table.

    Attributes:
        build: its name.
        target: the device.
        registers: of a thread; AMD's accumulation registers among them.
        spills: bytes of memory that a thread's spilled registers move through or lie in.
        lanes: AMD's scalar registers that are parked in the lanes of a vector register. That costs
            an instruction each and no memory, so it is stated and not refused.
        shared: bytes of shared memory.
    """

    build: str
    target: str
    registers: int
    spills: int
    lanes: int
    shared: int


def builds(target: str) -> Iterator[Build]:
    """What is compiled for a target, a key of `TARGETS`."""
    arch = TARGETS[target].arch
    for dtype, dim, kind in (
        (torch.bfloat16, 64, "plain"),
        (torch.bfloat16, 64, "mark"),
        (torch.bfloat16, 128, "plain"),
        (torch.bfloat16, 128, "mark"),
        (torch.bfloat16, 128, "skip_now"),
        (torch.bfloat16, 128, "variable"),
        (torch.bfloat16, 128, "ragged"),
        (torch.bfloat16, 128, "variable mark"),
        (torch.bfloat16, 64, "variable centroids"),
        (torch.bfloat16, 128, "variable centroids"),
        (torch.bfloat16, 256, "plain"),
        (torch.bfloat16, 256, "mark"),
        (torch.float32, 64, "mark"),
        (torch.float32, 128, "plain"),
        (torch.float32, 128, "mark"),
    ):
        yield _attention_build(dtype, dim, kind, arch)
    for parts in (*sparse_linear_builds(arch), *moment_builds(arch)):
        yield Build(*parts)
    sizes = {"D": 128, "BLOCK_D": block_of(128)}
    yield Build(
        "assign bf16 D128",
        "triton_kernels:assign_kernel",
        _signature(
            {"p_x": "*bf16", "p_centroids": "*fp32", "p_squares": "*fp32", "p_labels": "*i32"},
            "s_x_b s_x_h s_x_l s_x_d heads length clusters",
        ),
        {**sizes, "BLOCK_L": 64, "BLOCK_C": 32},
        {"num_warps": 4, "num_stages": 2},
    )
    yield Build(
        "segment_mean bf16 D128",
        "triton_kernels:segment_mean_kernel",
        _signature(
            {
                "p_x": "*bf16",
                "p_order": "*i32",
                "p_offsets": "*i32",
                "p_empty": "*fp32",
                "p_out": "*fp32",
            },
            "s_x_b s_x_h s_x_l s_x_d s_offset_b s_offset_h heads length segments",
        ),
        {**sizes, "BLOCK_L": 32, "ORDERED": True, "KEEP_EMPTY": True},
        {"num_warps": 4},
    )
    yield Build(
        "permute bf16 D128",
        "triton_kernels:permute_kernel",
        _signature(
            {"p_x": "*bf16", "p_order": "*i32", "p_out": "*bf16"},
            "s_x_b s_x_h s_x_l s_x_d s_order_b s_order_h s_order_l s_out_b s_out_h s_out_l s_out_d "
            "heads length",
        ),
        {**sizes, "BLOCK_L": 32, "INVERSE": False},
        {"num_warps": 4},
    )
    yield Build(
        "merge bf16 D128",
        "triton_kernels:merge_kernel",
        _signature(
            {
                **dict.fromkeys(("p_a", "p_b", "p_out"), "*bf16"),
                **dict.fromkeys(("p_a_lse", "p_b_lse", "p_lse"), "*fp32"),
            },
            " ".join(f"s_{x}_{axis}" for x in ("a", "b", "out") for axis in "bhld")
            + " heads length",
        ),
        {**sizes, "BLOCK_L": 32},
        {"num_warps": 4},
    )


def _signature(pointers: dict[str, str], integers: str) -> dict[str, str]:
    return {**pointers, **dict.fromkeys(integers.split(), "i32")}


def _attention_build(dtype: torch.dtype, dim: int, kind: str, arch: int | str) -> Build:
    """The flags come from the launcher itself, for a call on tensors without memory."""
    length = 1000 if kind == "ragged" else 1024
    x = torch.empty((1, 1, length, dim), dtype=dtype, device="meta")
    tiling = Tiling.fixed(length, 128)
    k_tiling = Tiling.fixed(length, 64)
    variable = kind.startswith("variable")
    if variable:
        offsets = torch.empty((1, 1, 9), dtype=torch.int32, device="meta")
        tiling = k_tiling = Tiling.variable(offsets, length)
    tile_map = TileMap.dense(tiling, k_tiling, "meta")
    marking = None
    if kind.endswith(("mark", "skip_now")):
        marking = Marking(-10.0, skip_now=kind == "skip_now")
    mask = torch.empty((1, length), dtype=torch.bool, device="meta") if kind == "ragged" else None
    centroids = None
    if kind.endswith("centroids"):
        means = torch.empty((1, 1, tile_map.k_tiles, dim), dtype=dtype, device="meta")
        centroids = TileCentroids(means, means)
    call = check_call(x, x, x, tile_map, None, mask, True, marking, centroids)
    flags, blocks = flags_for(call, arch)
    present = {
        "p_mask": mask is not None,
        "p_threshold": marking is not None,
        "p_keep": marking is not None,
        **dict.fromkeys(("p_mean_k", "p_mean_v", "p_bias"), centroids is not None),
        **dict.fromkeys(("p_work_tile", "p_work_row", "p_q_bound", "p_k_bound"), variable),
    }
    types = dict.fromkeys(("p_lse", "p_threshold", "p_bias"), "*fp32")
    types |= dict.fromkeys(("p_keep", "p_mask"), "*u8")
    types |= dict.fromkeys(("p_q", "p_k", "p_v", "p_out", "p_mean_k", "p_mean_v"), _TYPES[dtype])
    signature: dict[str, str] = {}
    from .attention.triton_kernel import tile_attention_kernel

    for name in tile_attention_kernel.arg_names:
        if name in flags:
            continue
        if not present.get(name, True):
            signature[name] = "constexpr"
        elif name.startswith("p_"):
            signature[name] = types.get(name, "*i32")
        else:
            signature[name] = "fp32" if name == "scale_log2" else "i32"
    return Build(
        f"attention {str(dtype)[6:].replace('float', 'fp').replace('bfp', 'bf')} D{dim} {kind}",
        "attention.triton_kernel:tile_attention_kernel",
        signature,
        flags,
        {"num_warps": blocks.warps, "num_stages": blocks.stages},
    )


def compile_build(build: Build, target: str) -> Resources:
    """Compile one build for one target and read off what it takes.

    Raises:
        RuntimeError: it spills registers, or takes more shared memory than the device has.
    """
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, function = build.kernel.split(":")
    kernel = getattr(importlib.import_module(f"{__package__}.{module}"), function)
    device = TARGETS[target]
    # The innermost stride is 1, pointers and the other strides of q, k, v are multiples of 16, as
    # they are at run time: what the compiler may rely on decides how it loads.
    constants: dict[str, Any] = dict(build.flags)
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    signature: dict[str, str] = {}
    for place, name in enumerate(kernel.arg_names):
        kind = build.signature.get(name, "constexpr")
        if re.fullmatch(r"s_\w+_d|s_order_l", name):
            constants[name], kind = 1, "constexpr"
        elif kind == "constexpr" and name not in constants:
            constants[name] = None
        elif kind.startswith("*") or re.fullmatch(_ALIGNED, name):
            attributes[(place,)] = [["tt.divisibility", 16]]
        signature[name] = kind
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(
        source,
        target=GPUTarget(device.backend, device.arch, device.warp),
        options=dict(build.options),
    )
    taken = (
        _ptxas_resources(compiled.asm["ptx"], int(device.arch))
        if device.backend == "cuda"
        else _amd_resources(compiled.asm["amdgcn"])
    )
    resources = Resources(build.name, target, *taken, compiled.metadata.shared)
    if resources.spills:
        raise RuntimeError(f"{build.name} spills on {target}: {resources}")
    if resources.shared > device.shared:
        raise RuntimeError(
            f"{build.name} takes {resources.shared} bytes of shared memory on {target}, which has "
            f"{device.shared}"
        )
    return resources


def _ptxas_resources(ptx: str, arch: int) -> tuple[int, int, int]:
    """Registers of a thread, bytes of spills (stores and loads) as ptxas states them, and 0."""
    from triton.backends.nvidia.compiler import get_ptxas

    tool = get_ptxas(arch)
    suffix = "a" if arch >= 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        done = subprocess.run(
            [tool.path, "-v", f"--gpu-name=sm_{arch}{suffix}", path, "-o", path.with_suffix(".o")],
            capture_output=True,
            text=True,
            check=True,
        )
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert registers is not None and spills is not None, done.stderr
    return int(registers[1]), int(spills[1]) + int(spills[2]), 0


def _amd_resources(assembly: str) -> tuple[int, int, int]:
    """Vector registers, bytes of memory for spills, and scalar registers parked in lanes.

    A kernel of ours has no stack of its own, so its private segment holds spills only.
    """

    def stated(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", assembly)
        assert found is not None, key
        return int(found[1])

    memory = max(stated("private_segment_fixed_size"), 4 * stated("vgpr_spill_count"))
    return stated("vgpr_count"), memory, stated("sgpr_spill_count")


def sweep(targets: list[str]) -> list[Resources]:
    """All builds for all targets.

    Raises:
        RuntimeError: with every build that spills or does not fit.
    """
    rows, failures = [], []
    for target in targets:
        for build in builds(target):
            try:
                rows.append(compile_build(build, target))
            except RuntimeError as error:
                failures.append(str(error))
    if failures:
        raise RuntimeError("\n".join(failures))
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m ditaccel.kernels.aot", description=__doc__)
    parser.add_argument("--target", choices=tuple(TARGETS), help="one only, and write nothing")
    options = parser.parse_args(arguments)
    rows = sweep([options.target] if options.target else list(TARGETS))
    if options.target is None:
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
    for row in rows:
        print(
            f"{row.build:36} {row.target:8} {row.registers:4} {row.spills:4} {row.lanes:4} "
            f"{row.shared:7}"
        )


if __name__ == "__main__":
    main()
