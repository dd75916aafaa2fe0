"""What diffusers' own testers ask of a cache and of attention processors, asked of ditaccel.

Each test names the assertion of theirs that it stands for (`tests/models/testing_utils/cache.py`,
`attention.py`, `compile.py`, `tests/pipelines/testing_utils/cache.py`, `tests/hooks/test_hooks.py`
of diffusers 0.40); tolerances are tighter, mostly none. Offloading, layerwise casting, LoRA and
context parallelism are in `compositions.py` and `test_parallel.py`.
"""

import inspect

import pytest
import torch
from tiny import FAMILIES, generate, tiny_dit, tiny_flux, tiny_wan

import ditaccel
from ditaccel.core.patching import patch_of

MAKERS = [tiny_dit, tiny_flux, tiny_wan]
SPECS = [
    "confidence_gated_taylor:threshold=1e9,warmup=2",
    "first_block_residual:threshold=1e9",
    "taylorseer:interval=2",
    "adaptive_taylor:tolerance=1e9,warmup=2",
    "reuse:interval=2",
]


def patched(transformer):
    return [m for m in transformer.modules() if patch_of(m) is not None]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("spec", SPECS)
def test_enabled_state_double_enable_and_hook_count(make, spec):
    """`_cache_enable_disable_state`, `_double_enable_raises_error`, `_hooks_registered`."""
    pipe, _ = make()
    assert not patched(pipe.transformer)
    ditaccel.accelerate(pipe, spec)
    ditaccel.report(pipe)
    blocks = sum(
        len(part) for part in pipe.transformer.children() if isinstance(part, torch.nn.ModuleList)
    )
    assert len(patched(pipe.transformer)) >= 1 + blocks
    once = patched(pipe.transformer)
    with pytest.warns(UserWarning, match="was accelerated already"):
        ditaccel.accelerate(pipe, spec)
    assert patched(pipe.transformer) == once
    for _ in range(2):
        ditaccel.restore(pipe)
        assert not patched(pipe.transformer)
    assert not ditaccel.report(pipe).is_on


def arguments(pipe, call, timestep):
    """What the transformer of a tiny Flux is called with."""
    generator = torch.Generator().manual_seed(7)
    return {
        "hidden_states": torch.randn(1, 16, 16, generator=generator),
        "encoder_hidden_states": call["prompt_embeds"],
        "pooled_projections": call["pooled_prompt_embeds"],
        "timestep": torch.tensor([timestep]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(6, 3),
        "return_dict": False,
    }


@pytest.mark.parametrize("spec", SPECS[:3] + SPECS[4:])
@torch.no_grad()
def test_passes_in_contexts(spec):
    """`_cache_inference`, `_cache_context_manager`: contexts do not see each other."""
    pipe, call = tiny_flux()
    transformer = pipe.transformer
    passes = [arguments(pipe, call, t) for t in (1.0, 0.8, 0.6, 0.4)]
    dense = [transformer(**each)[0] for each in passes]
    ditaccel.accelerate(transformer, spec)
    outputs = {"a": [], "b": []}
    for each in passes:
        for name, done in outputs.items():
            with transformer.cache_context(name):
                done.append(transformer(**each)[0])
    assert all(torch.equal(x, y) for x, y in zip(*outputs.values(), strict=True))
    assert torch.equal(outputs["a"][0], dense[0])
    assert all(torch.isfinite(x).all() for x in outputs["a"])
    assert max(float((x - y).abs().max()) for x, y in zip(outputs["a"], dense, strict=True)) > 1e-5
    alone = []
    ditaccel.restore(transformer)
    ditaccel.accelerate(transformer, spec)
    for each in passes:
        with transformer.cache_context("a"):
            alone.append(transformer(**each)[0])
    assert all(torch.equal(x, y) for x, y in zip(alone, outputs["a"], strict=True))


@pytest.mark.parametrize("spec", SPECS)
def test_their_reset_is_no_concern_of_ours(spec):
    """`test_<x>_reset_stateful_cache`: state ends with the generation, whoever resets what."""
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe, spec)
    expected = generate(pipe, call)
    pipe.transformer._reset_stateful_cache()
    assert torch.equal(generate(pipe, call), expected)

    def reset(pipe, index, timestep, tensors):
        pipe.transformer._reset_stateful_cache()
        return tensors

    assert torch.equal(generate(pipe, call, callback_on_step_end=reset), expected)


@pytest.mark.parametrize("make", [tiny_flux, tiny_wan])
@pytest.mark.parametrize(
    "spec", ["taylorseer:interval=2,warmup=3", "confidence_gated_taylor:threshold=0.05"]
)
def test_close_to_dense_and_equal_to_it_afterwards(make, spec):
    """`test_<x>_cache_inference` of pipelines: theirs is within 0.1, and within 1e-4 afterwards."""
    pipe, call = make()
    dense = generate(pipe, call)
    with ditaccel.accelerated(pipe, spec):
        fast = generate(pipe, call)
    scale = float(dense.abs().max())
    assert float((fast - dense).abs().max()) < 0.05 * max(scale, 1.0)
    assert torch.equal(generate(pipe, call), dense)


@pytest.mark.parametrize("make", MAKERS)
def test_the_signature_of_forward_is_kept(make):
    """`test_hooks.py`: signature, order of hooks, and what hooks see."""
    pipe, call = make()
    modules = [pipe.transformer, *pipe.transformer.modules()]
    before = [inspect.signature(m.forward) for m in modules]
    order = []
    pipe.transformer.register_forward_pre_hook(lambda *_: order.append("before"))
    pipe.transformer.register_forward_hook(lambda *_: order.append("after"))
    generate(pipe, call, num_inference_steps=2)
    expected, order[:] = list(order), []
    ditaccel.accelerate(pipe, "confidence_gated_taylor & lite_attention")
    assert [inspect.signature(m.forward) for m in modules] == before
    generate(pipe, call, num_inference_steps=2)
    assert order == expected


@pytest.mark.parametrize("make", [tiny_flux, tiny_wan])
def test_processors_are_got_set_and_counted(make):
    """`AttentionTesterMixin`: the dictionary, its count, and a mismatch."""
    pipe, call = make()
    transformer = pipe.transformer
    own = transformer.attn_processors
    dense = generate(pipe, call)
    ditaccel.accelerate(pipe, "lite_attention")
    wrapped = transformer.attn_processors
    assert wrapped.keys() == own.keys() and any(wrapped[k] is not own[k] for k in own)
    with pytest.raises(ValueError, match="does not match the number of attention layers"):
        transformer.set_attn_processor(dict(list(wrapped.items())[1:]))
    transformer.set_attn_processor(dict(wrapped))
    assert torch.equal(generate(pipe, call), dense)  # short sequences stay dense
    ditaccel.restore(pipe)
    assert all(transformer.attn_processors[k] is own[k] for k in own)


@pytest.fixture
def native_again():
    """Setting a backend sets a global, which resetting it leaves."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    yield
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_a_backend_set_equals_a_backend_in_context(name, native_again):
    """`AttentionBackendTesterMixin`: both ways the same, close to native, switched and restored."""
    from diffusers import attention_backend
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    pipe, call = FAMILIES[name]()
    call = {**call, "num_inference_steps": 5}
    native = generate(pipe, call)
    spec = "lite_attention:min_tokens=0,dense_steps=2,break_even=1,q_tile=16,k_tile=16"
    with ditaccel.accelerated(pipe, spec):
        sparse = generate(pipe, call)
        active = _AttentionBackendRegistry.get_active_backend()
        with attention_backend("_native_math"):
            in_context = generate(pipe, call)
        assert _AttentionBackendRegistry.get_active_backend() == active
        pipe.transformer.set_attention_backend("_native_math")
        assert torch.equal(generate(pipe, call), in_context)
    torch.testing.assert_close(in_context, sparse, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(native).all()


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_flux, tiny_wan])
def test_other_shapes_on_compiled_blocks(make):
    """`test_compile_on_different_shapes`: results stay those of eager blocks."""
    pipe, call = make()
    sizes = [{"height": 32, "width": 32}, {"height": 64, "width": 32}, {"height": 64, "width": 64}]
    spec = "confidence_gated_taylor:threshold=1e9,warmup=2"
    torch._dynamo.reset()
    with ditaccel.accelerated(pipe, spec):
        expected = [generate(pipe, call, **size) for size in sizes]
    pipe.transformer.compile_repeated_blocks(fullgraph=True, dynamic=True, backend="eager")
    with ditaccel.accelerated(pipe, spec):
        for size, wanted in zip(sizes, expected, strict=True):
            torch.testing.assert_close(generate(pipe, call, **size), wanted, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
