"""Compile the Triton kernels ahead of time for several devices, without having any of them.

    python -m ditaccel.kernels.aot                     # write the table next to this file
    python -m ditaccel.kernels.aot --target sm_90      # one device, printed only

What is compiled is what each operator's `builds.py` yields.

The table `aot_table.csv` holds registers, spills and shared memory of each build: as ptxas states
them on NVIDIA, as the assembly states them on AMD. A spill to memory, or more shared memory than
the device has, is an error. The table is for readers of the repository; wheels leave
it out, and this module too.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .build import Build, kernel_of

TABLE = Path(__file__).with_name("aot_table.csv")

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
    """What is compiled for a target, a key of `TARGETS`: of each operator in turn."""
    for path in sorted(Path(__file__).parent.glob("*/builds.py")):
        module = importlib.import_module(f"{__package__}.{path.parent.name}.builds")
        yield from module.builds(TARGETS[target].arch)


def compile_build(build: Build, target: str) -> Resources:
    """Compile one build for one target and read off what it takes.

    Raises:
        RuntimeError: it spills registers, or takes more shared memory than the device has.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = kernel_of(build.kernel)
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
