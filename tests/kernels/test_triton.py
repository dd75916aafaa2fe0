"""Triton kernels without a GPU: in the interpreter, and compiled ahead of time.

The interpreter must be chosen before Triton is imported, which another test of this process may
have done, so it runs in a process of its own.
"""

import csv
import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from ditaccel.kernels.fuzz import operators

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)
pytestmark = needs_triton


def _run(*arguments: str, interpret: bool) -> str:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["OMP_NUM_THREADS"] = "1"
    if interpret:
        env["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", *arguments], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _fuzz(operator: str, cases: int, seed: int) -> None:
    out = _run(
        *("-m", "ditaccel.kernels.fuzz", "--backend", "triton", "--kernels", operator),
        *("--cases", str(cases), "--seed", str(seed)),
        interpret=True,
    )
    assert f"{cases} cases, 0 failed" in out


@pytest.mark.parametrize("operator", operators())
def test_random_calls_agree_with_the_definition_in_the_interpreter(operator: str) -> None:
    _fuzz(operator, operators()[operator].INTERPRETED[0], seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("operator", operators())
def test_many_random_calls_agree_in_the_interpreter(operator: str) -> None:
    _fuzz(operator, operators()[operator].INTERPRETED[1], seed=2000)


_SLICES = """
from ditaccel.kernels.sparse_linear import triton_linear
from ditaccel.kernels.sparse_linear.fuzz import check, draw
# Sixteen channels of one head at a time: a head of 24 takes two slices, the second a short one.
triton_linear.BYTES = 0
seed = next(s for s in range(99) if draw(s, small=True)["q"].shape[-1] == 24)
assert check(seed, "triton") == []
print("slices agree")
"""


def test_slices_of_channels_agree_in_the_interpreter() -> None:
    assert "slices agree" in _run("-c", _SLICES, interpret=True)


_MOMENTS = """
import torch
from ditaccel.kernels import Tiling, merge_attention, moment_attention, tile_moments
from ditaccel.kernels.dispatch import choose
from ditaccel.kernels.fuzz import poisoned, relative_rmse
from ditaccel.kernels.moments import BACKENDS, moment_attention_backends, triton_backend
from ditaccel.kernels.moments.call import check_call
# Two of three query tiles of one key head at a time, where heads share keys; 75 key tiles are three
# blocks, one of which holds no marginal tile, and for one query tile none does.
triton_backend._CHUNK = 2 * 24 * 24
generator = torch.Generator().manual_seed(0)
q, k, v = (torch.randn(1, n, length, 24, generator=generator)
           for n, length in ((4, 40), (2, 150), (2, 150)))
tilings = Tiling.fixed(40, 16), Tiling.fixed(150, 2)
marginal = torch.rand(1, 4, 3, 75, generator=generator) < 0.5
marginal[..., 32:64] = False
marginal[:, :, 1] = False
with poisoned():
    out, lse = moment_attention(q, k, v, marginal, *tilings, backend="triton")
wanted, wanted_lse = moment_attention(q, k, v, marginal, *tilings, backend="naive")
assert relative_rmse(out, wanted) < 1e-6
torch.testing.assert_close(lse.double(), wanted_lse, rtol=1e-6, atol=1e-6)
assert bool((out[:, :, 16:32] == 0).all()) and bool(lse[:, :, 16:32].isinf().all())

q = torch.randn(1, 1, 40, 16)
tiling = Tiling.fixed(40, 16)
everything = torch.ones(1, 1, 3, 3, dtype=torch.bool)
def reason(x, **given):
    return moment_attention_backends(x, x, x, everything, tiling, tiling, **given)["triton"]
assert reason(q) is None
assert "bfloat16" in reason(q.bfloat16()) and "float64" in reason(q.double())
assert "at most 256, got 257" in reason(torch.randn(1, 1, 40, 257))
wants = q.clone().requires_grad_()
assert "let plain torch run it" in reason(wants)
given = tile_moments(wants, wants, tiling)
assert given.keys.requires_grad and reason(q, moments=given) is not None
with torch.no_grad():
    assert reason(wants) is None
call = check_call(q, q, q, everything, tiling, tiling, None, None, None)
assert choose("x", BACKENDS, call).name == "torch", "the interpreter is for tests"
three, two = ((q, q[..., 0]),) * 3, ((wants, wants[..., 0]),) * 2
for parts, text in (three, "two parts, got 3"), (two, "no backward"):
    try:
        merge_attention(*parts, backend="triton")
    except ValueError as error:
        assert text in str(error)
    else:
        raise AssertionError("a gate was passed")
print("chunks agree, gates hold")
"""


def test_chunks_and_gates_of_the_kernels_of_moments() -> None:
    assert "chunks agree, gates hold" in _run("-c", _MOMENTS, interpret=True)


_SPARSE_LINEAR_GATES = """
import torch
from ditaccel.kernels import TileMap, Tiling
from ditaccel.kernels.dispatch import choose
from ditaccel.kernels.sparse_linear import sparse_linear_backends
from ditaccel.kernels.sparse_linear.backends import BACKENDS
from ditaccel.kernels.sparse_linear.call import check_call
q = torch.randn(1, 1, 40, 16, requires_grad=True)
tiling = Tiling.fixed(40, 16)
dense = TileMap.dense(tiling, tiling)
def reason(x):
    return sparse_linear_backends(x, x, x, dense, dense, q_features=x, k_features=x)["triton"]
assert reason(q) is None, "it has a backward"
assert "bfloat16" in reason(q.bfloat16()) and "float64" in reason(q.double())
assert "at most 128, got 129" in reason(torch.randn(1, 1, 40, 129))
call = check_call(q, q, q, dense, dense, q, q, None, None, 1e-6)
assert choose("x", BACKENDS, call).name == "torch", "the interpreter is for tests"
print("gates hold")
"""


def test_gates_of_the_sparse_linear_kernels() -> None:
    assert "gates hold" in _run("-c", _SPARSE_LINEAR_GATES, interpret=True)


_GATES = """
import torch
from ditaccel.kernels import Marking, TileMap, Tiling, tile_attention
from ditaccel.kernels import tile_attention_backends as why
q = torch.randn(1, 1, 300, 16)
big, small = Tiling.fixed(300, 128), Tiling.fixed(300, 32)
dense = TileMap.dense(small, small)
assert why(q, q, q, dense)["triton"] is None
assert "bfloat16" in why(*[q.bfloat16()] * 3, dense)["triton"]
assert "float64" in why(*[q.double()] * 3, dense)["triton"]
skip = Marking(-1.0, skip_now=True)
assert "at most 64 x 32" in why(q, q, q, TileMap.dense(big, big), marking=skip)["triton"]
wide = torch.randn(1, 1, 300, 257)
assert "at most 256" in why(wide, wide, wide, dense)["triton"]
try:
    tile_attention(wide, wide, wide, dense, backend="triton")
except ValueError as error:
    assert "backend 'triton' cannot run this tile_attention" in str(error)
else:
    raise AssertionError("a gate was passed")
import ditaccel.kernels.attention as attention
from ditaccel.kernels.dispatch import choose
from ditaccel.kernels.attention.call import check_call
call = check_call(q, q, q, dense, None, None, False, None)
assert choose("x", attention.BACKENDS, call).name == "torch", "the interpreter is for tests"
print("gates hold")
"""


def test_gates_of_the_kernel() -> None:
    assert "gates hold" in _run("-c", _GATES, interpret=True)


_LEAN = """
import sys
import ditaccel.kernels
assert "triton" not in sys.modules, "importing the kernels imported triton"
assert not any(name.startswith("diffusers") for name in sys.modules)
print("lean")
"""


def test_importing_the_kernels_imports_no_triton() -> None:
    assert "lean" in _run("-c", _LEAN, interpret=False)


_ONE_BUILD = """
from ditaccel.kernels import aot
build = next(b for b in aot.builds("sm_90") if b.name == "attention bf16 D128 mark")
resources = aot.compile_build(build, "sm_90")
print(resources.registers, resources.spills, resources.shared)
"""


def test_one_build_compiles_without_a_gpu_and_spills_nothing() -> None:
    registers, spills, shared = map(int, _run("-c", _ONE_BUILD, interpret=False).split())
    assert 0 < registers <= 255 and spills == 0 and 0 < shared <= 227 * 1024


_EVERY_KERNEL = """
from pathlib import Path
from ditaccel import kernels
from ditaccel.kernels import aot
from ditaccel.kernels.build import kernel_of
root = Path(kernels.__file__).parent
compiled = {build.kernel for build in aot.builds("sm_90")}
written = set()
for path in root.rglob("*.py"):
    module = ".".join(path.relative_to(root).with_suffix("").parts)
    for line in path.read_text().splitlines():
        if line.startswith("def ") and line.endswith("_kernel("):
            written.add(f"{module}:{line[4:-1]}")
assert len(written) > 10 and all(kernel_of(kernel).arg_names for kernel in written)
print(sorted(written ^ compiled))
"""


def test_every_kernel_is_compiled_ahead_of_time() -> None:
    assert _run("-c", _EVERY_KERNEL, interpret=False).strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942"])
def test_all_builds_compile_and_spill_nothing(target: str) -> None:
    _run("-m", "ditaccel.kernels.aot", "--target", target, interpret=False)


def test_the_committed_table_is_complete_and_shows_no_spill() -> None:
    from ditaccel.kernels import aot

    if not aot.TABLE.exists():
        pytest.skip("no table: make one with python -m ditaccel.kernels.aot, once nothing spills")
    with aot.TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = {(build.name, target) for target in aot.TARGETS for build in aot.builds(target)}
    assert {(row["build"], row["target"]) for row in rows} == expected
    assert [row for row in rows if int(row["spills"])] == []
    assert [row for row in rows if int(row["shared"]) > aot.TARGETS[row["target"]].shared] == []


def test_a_device_without_the_matrix_instructions_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ditaccel.kernels import dispatch

    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    dispatch.arch_of.cache_clear()
    try:
        reason = dispatch.why_no_triton_on(torch.device("cuda", 0))
    finally:
        dispatch.arch_of.cache_clear()
    assert reason is not None and "compute capability 8.0 or more, and cuda:0 has 7.5" in reason


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100, 120, "gfx942"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("dim", [32, 80, 128, 200])
def test_blocks_are_never_larger_than_the_tiles(
    arch: int | str, dtype: torch.dtype, dim: int
) -> None:
    from ditaccel.kernels import TileMap, Tiling
    from ditaccel.kernels.attention.call import check_call
    from ditaccel.kernels.attention.triton_backend import blocks_for

    x = torch.empty((1, 1, 96, dim), dtype=dtype, device="meta")
    tile_map = TileMap.dense(Tiling.fixed(96, 16), Tiling.fixed(96, 32), "meta")
    blocks = blocks_for(check_call(x, x, x, tile_map, None, None, False, None), arch)
    assert (blocks.rows, blocks.columns) == (16, 32)
    assert blocks.warps in (4, 8)


@pytest.mark.parametrize(("version", "refused"), [((3, 6), True), ((3, 9), False)])
def test_skip_now_is_refused_where_an_old_triton_cannot_compile_it(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], refused: bool
) -> None:
    from ditaccel.kernels import Marking, TileMap, Tiling
    from ditaccel.kernels.attention import triton_backend
    from ditaccel.kernels.attention.call import check_call

    for name, value in (("why_not_triton", None), ("arch_of", 100), ("triton_version", version)):
        monkeypatch.setattr(triton_backend, name, lambda *_, value=value, **__: value)
    x = torch.empty(1, 1, 64, 64, dtype=torch.float16)
    tiling = Tiling.fixed(64, 32)
    marking = Marking(-3.0, skip_now=True)
    call = check_call(x, x, x, TileMap.dense(tiling, tiling), None, None, False, marking)
    reason = triton_backend.why_not(call)
    assert (reason is not None and "before Triton 3.9" in reason) == refused
