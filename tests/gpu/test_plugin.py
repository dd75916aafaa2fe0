"""The main job on a GPU: exact, undone, in half precision, compiled, offloaded, without waiting."""

import warnings

import pytest
import torch
from inspection import traces
from tiny import generate, tiny_dit, tiny_flux, tiny_wan, tiny_wan22

import ditaccel
from ditaccel.sessions.session import session_of

FAMILIES = [tiny_dit, tiny_wan, tiny_wan22, tiny_flux]
EXACT = [
    "confidence_gated_taylor:threshold=0",
    "first_block_residual:threshold=0",
    "adaptive_taylor:tolerance=0,guidance=difference",
    "taylorseer:interval=1",
    "step_mask:steps=[0,1,2,3,4,5,6,7,8,9,10,11]",
]
SKIPPING = [
    "confidence_gated_taylor:threshold=1e9",
    "confidence_gated_taylor:threshold=1e9,target=residual,guidance=follow,basis=auto",
    "first_block_residual:threshold=1e9,order=1",
    "adaptive_taylor:tolerance=1e9,guidance=difference,guidance_interval=2",
    "taylorseer:interval=3,order=2",
    "taylorseer:interval=3,granularity=last_block,basis=exponential",
    "reuse:interval=2,target=residual",
]
COMPILED = [s for s in SKIPPING if "taylorseer:interval=3,order=2" not in s]


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("spec", EXACT)
def test_nothing_skipped_is_bit_exact(placed, make, spec):
    pipe, call = placed(make)
    dense = generate(pipe, call)
    with ditaccel.accelerated(pipe, spec):
        assert torch.equal(generate(pipe, call), dense)
        assert ditaccel.report(pipe).computed_share == 1.0


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("spec", SKIPPING)
def test_skipping_is_real_finite_repeatable_and_undone(placed, make, spec):
    pipe, call = placed(make)
    dense = generate(pipe, call)
    clean = traces(pipe)
    ditaccel.accelerate(pipe, spec)
    first, second = generate(pipe, call), generate(pipe, call)
    assert 0 < ditaccel.report(pipe).computed_share < 1
    assert torch.isfinite(first).all() and torch.equal(first, second)
    assert not torch.equal(first, dense)
    ditaccel.restore(pipe)
    assert traces(pipe) == clean
    assert torch.equal(generate(pipe, call), dense)


@pytest.mark.parametrize("make", [tiny_dit, tiny_wan, tiny_flux])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", SKIPPING)
def test_half_precision(placed, make, dtype, spec):
    pipe, call = placed(make, dtype)
    dense = generate(pipe, call)
    assert torch.isfinite(dense).all()
    with ditaccel.accelerated(pipe, spec):
        fast = generate(pipe, call)
        assert 0 < ditaccel.report(pipe).computed_share < 1
    assert torch.isfinite(fast).all() and fast.dtype == dense.dtype
    assert torch.equal(generate(pipe, call), dense)


def held(pipe):
    """All tensors that the session remembers between calls."""
    found = []
    for cache in session_of({"transformer": pipe.transformer}).caches.values():
        for state in cache._states.values():
            found += [*state.last._features, *state.first._features]
            found += [f for hs in state.modules.values() for h in hs for f in h._features]
            found += [v for _, v in state.corrector._nodes]
            found += [] if state.corrector._sum is None else [state.corrector._sum]
    return found


@pytest.mark.parametrize("spec", SKIPPING)
def test_histories_stay_on_the_device(placed, device, spec):
    pipe, call = placed(tiny_wan)
    step, seen = pipe.scheduler.step, []

    def watched(*args, **kwargs):
        seen.append({tensor.device.type for tensor in held(pipe)})
        return step(*args, **kwargs)

    pipe.scheduler.step = watched
    with ditaccel.accelerated(pipe, spec):
        generate(pipe, call)
        assert session_of({"transformer": pipe.transformer}).caches["transformer"].nbytes == 0
    assert set().union(*seen) == {device.type}


def waits(pipe, call, device):
    """How often a generation makes the CPU wait for the GPU."""
    generate(pipe, call)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as lines:
            warnings.simplefilter("always")
            generate(pipe, call)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(line.message) for line in lines)


@pytest.mark.parametrize(
    ("spec", "per_call"),
    [
        ("taylorseer:interval=3,granularity=last_block,correction=never", 1),  # the timestep
        ("confidence_gated_taylor:threshold=1e9", 2),  # and the gate
        ("adaptive_taylor:tolerance=0.01", 2),  # and the error of the gap
    ],
)
def test_the_gpu_is_waited_for_no_more_than_documented(placed, device, spec, per_call):
    if device.type != "cuda" or torch.version.hip:
        pytest.skip("only CUDA counts waits")
    pipe, call = placed(tiny_wan)
    before = waits(pipe, call, device)
    with ditaccel.accelerated(pipe, spec):
        calls = 2 * call["num_inference_steps"]
        # per generation: the schedule's timesteps and sigmas, and whether all was finite
        assert waits(pipe, call, device) <= before + per_call * calls + 4


@pytest.mark.parametrize("spec", COMPILED)
@pytest.mark.parametrize("order", ["before", "after"])
def test_regional_compile_without_graph_breaks(placed, spec, order):
    torch._dynamo.reset()
    pipe, call = placed(tiny_wan)
    if order == "before":
        pipe.transformer.compile_repeated_blocks(fullgraph=True)
    ditaccel.accelerate(pipe, spec)
    if order == "after":
        pipe.transformer.compile_repeated_blocks(fullgraph=True)
    fast = generate(pipe, call)
    assert torch.isfinite(fast).all() and 0 < ditaccel.report(pipe).computed_share < 1
    ditaccel.restore(pipe)
    dense = generate(pipe, call)
    with ditaccel.accelerated(pipe, "adaptive_taylor:tolerance=0"):
        assert torch.equal(generate(pipe, call), dense)
    torch._dynamo.reset()


@pytest.mark.parametrize("make", [tiny_dit, tiny_wan, tiny_wan22])
@pytest.mark.parametrize("order", ["before", "after"])
def test_model_offload(placed, device, make, order):
    pipe, call = placed(make)
    spec = "adaptive_taylor:tolerance=1e9"
    with ditaccel.accelerated(pipe, spec):
        wanted = generate(pipe, call)
    pipe, call = make()
    if order == "before":
        pipe.enable_model_cpu_offload(device=device)
    ditaccel.accelerate(pipe, spec)
    if order == "after":
        pipe.enable_model_cpu_offload(device=device)
    for _ in range(2):
        torch.testing.assert_close(generate(pipe, call).cpu(), wanted.cpu())
    assert 0 < ditaccel.report(pipe).computed_share < 1
    ditaccel.restore(pipe)
    assert torch.isfinite(generate(pipe, call)).all()


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offload_does_not_load_what_is_skipped(placed, device, kind):
    pipe, call = placed(tiny_wan)
    spec = "adaptive_taylor:tolerance=1e9"
    with ditaccel.accelerated(pipe, spec):
        wanted = generate(pipe, call)
    groups = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    pipe.transformer.enable_group_offload(onload_device=device, offload_type=kind, **groups)
    with ditaccel.accelerated(pipe, spec):
        torch.testing.assert_close(generate(pipe, call), wanted)
        assert 0 < ditaccel.report(pipe).computed_share < 1


def test_generators_of_the_device(placed, device):
    pipe, call = placed(tiny_wan)

    def run():
        return pipe(**call, generator=torch.Generator(device).manual_seed(3)).frames

    dense = run()
    with ditaccel.accelerated(pipe, "adaptive_taylor:tolerance=0"):
        assert torch.equal(run(), dense)
    with ditaccel.accelerated(pipe, "adaptive_taylor:tolerance=1e9"):
        assert torch.isfinite(run()).all() and not torch.equal(run(), dense)


def test_memory_returns_after_restore(placed, device):
    if device.type != "cuda":
        pytest.skip("only a device counts its bytes")
    pipe, call = placed(tiny_wan)
    generate(pipe, call)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with ditaccel.accelerated(pipe, "taylorseer:interval=3,order=2"):
        generate(pipe, call)
        assert torch.cuda.memory_allocated() <= before + 1024
    assert torch.cuda.memory_allocated() == before


def test_calls_are_timed_by_the_device(placed):
    """By events, which are read when the report is asked for and not before."""
    pipe, call = placed(tiny_wan)
    with ditaccel.accelerated(pipe, "taylorseer:interval=3,granularity=last_block,target=output"):
        generate(pipe, call)
        timing = ditaccel.report(pipe).timing
    assert timing.calls == 16 and 0 < timing.forecast < timing.computed
