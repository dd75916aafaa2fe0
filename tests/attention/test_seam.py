"""The seam in front of attention processors, in every family, whatever the planner."""

import copy
import pickle

import pytest
import torch
from ditaccel.kernels import TileMap, Tiling
from inspection import traces
from planners import RecordingPlanner, use
from tiny import ATTENTION_FAMILIES, FAMILIES, generate

import ditaccel
from ditaccel.attention.engine.planner import Plan
from ditaccel.attention.engine.runtime import find_attention
from ditaccel.tuning.observe import observed

DISPATCHED = [name for name in ATTENTION_FAMILIES if FAMILIES[name].dispatches]
LITE_DENSE = "lite_attention:threshold=-1e9,min_tokens=0,q_tile=16,k_tile=16,break_even=1"
SMALL = {"q_tile": 16, "k_tile": 16, "min_tokens": 0, "break_even": 0.97}


def transformers(pipe):
    parts = (getattr(pipe, name, None) for name in ("transformer", "transformer_2"))
    return [part for part in parts if part is not None]


def processors(transformer):
    adapter = ditaccel.pipelines.adapter_for(type(transformer).__name__)
    return [each.module.processor for each in find_attention(transformer, adapter.attention)]


def all_processors(pipe):
    return [p for transformer in transformers(pipe) for p in processors(transformer)]


def every_other_tile(q, k, context, state):
    """A map that keeps half of the tiles, so that the output differs from dense."""
    tilings = [Tiling.fixed(context.length, 16) for _ in range(2)]
    at = [torch.arange(tiling.tiles) for tiling in tilings]
    mask = (at[0][:, None] + at[1]) % 2 == 0
    return Plan(TileMap.from_mask(mask[None, None], *tilings), "every other tile")


@pytest.mark.parametrize("name", ATTENTION_FAMILIES)
def test_dense_answers_are_bit_identical_and_asked_for_at_every_layer(name):
    pipe, call = FAMILIES[name]()
    dense = generate(pipe, call)
    clean, own = traces(pipe), all_processors(pipe)
    planner = RecordingPlanner()
    use(pipe, planner)
    assert torch.equal(generate(pipe, call), dense)
    layers = len(processors(pipe.transformer))
    asked = [context.layer for context, _ in planner.seen]
    each = FAMILIES[name].calls_a_layer
    order = [layer for layer in range(layers) for _ in range(each)]
    assert asked == order * ditaccel.report(pipe).total_calls
    assert {context.layers for context, _ in planner.seen} == {layers}
    ditaccel.restore(pipe)
    assert traces(pipe) == clean
    assert all(now is before for now, before in zip(all_processors(pipe), own, strict=True))
    planner.seen.clear()
    assert torch.equal(generate(pipe, call), dense) and not planner.seen


@pytest.mark.parametrize("name", ATTENTION_FAMILIES)
def test_a_map_of_all_tiles_is_dense_up_to_rounding(name):
    """Masks of padding included."""
    pipe, call = FAMILIES[name]()
    dense = generate(pipe, call)

    def all_tiles(q, k, context, state):
        tilings = [Tiling.fixed(context.length, 16) for _ in range(2)]
        return Plan(TileMap.dense(*tilings), "all", blind=True)

    planner = RecordingPlanner(all_tiles)
    with observed(pipe, planner):
        result = generate(pipe, call)
        assert all(row["density"] == 1 for row in ditaccel.report(pipe).attention[0].rows())
    assert planner.seen
    assert any(c.key_mask is not None for c, _ in planner.seen) == FAMILIES[name].masked
    error = (result - dense).square().mean().sqrt() / dense.square().mean().sqrt()
    assert float(error) < FAMILIES[name].rounding


@pytest.mark.parametrize("name", ["flux", "sd3", "mochi"])
def test_pipelines_of_one_class_and_copies_do_not_see_each_other(name):
    other, call = FAMILIES[name]()
    dense = generate(other, call)
    pipe, _ = FAMILIES[name]()
    planner = RecordingPlanner(every_other_tile)
    use(pipe, planner)
    sparse = generate(pipe, call)
    assert not torch.equal(sparse, dense)
    asked = len(planner.seen)
    copied = copy.deepcopy(pipe)
    unpickled = copy.copy(other)
    unpickled.transformer = pickle.loads(pickle.dumps(pipe.transformer))
    for each in (other, copied, unpickled):
        assert torch.equal(generate(each, call), dense)
        kinds = [type(p) for p in all_processors(each)]
        assert kinds == [type(p._ditaccel_inner) for p in all_processors(pipe)]
    assert len(planner.seen) == asked
    assert torch.equal(generate(pipe, call), sparse)


@pytest.mark.parametrize("name", ATTENTION_FAMILIES)
def test_copies_have_the_familys_own_processors(name):
    pipe, _ = FAMILIES[name]()
    kinds = [type(p) for p in all_processors(pipe)]
    ditaccel.accelerate(pipe, attention=ditaccel.LiteAttentionConfig())
    assert [type(p) for p in all_processors(pipe)] != kinds
    assert [type(p) for p in all_processors(copy.deepcopy(pipe))] == kinds
    for transformer in transformers(pipe):
        again = pickle.loads(pickle.dumps(transformer))
        assert [type(p) for p in processors(again)] == kinds[: len(processors(again))]


@pytest.fixture
def native_again():
    """`set_attention_backend` sets a global, which `reset_attention_backend` leaves."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    yield
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)


@pytest.mark.parametrize("name", DISPATCHED)
def test_attention_backends_are_set_and_reset_through_the_wrapper(name, monkeypatch, native_again):
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    pipe, call = FAMILIES[name]()
    math = AttentionBackendName._NATIVE_MATH
    used = []
    original = _AttentionBackendRegistry._backends[math]

    def counted(*args, **kwargs):
        used.append(1)
        return original(*args, **kwargs)

    monkeypatch.setitem(_AttentionBackendRegistry._backends, math, counted)
    planner = RecordingPlanner()
    use(pipe, planner)
    inner = [p._ditaccel_inner for p in processors(pipe.transformer)]
    pipe.transformer.set_attention_backend("_native_math")
    # (Cosmos' processors have no backend of their own, and follow the global one)
    assert {getattr(p, "_attention_backend", math) for p in inner} == {math}
    through_the_wrapper = generate(pipe, call)
    assert len(used) >= len(planner.seen) > 0
    ditaccel.restore(pipe)
    assert torch.equal(generate(pipe, call), through_the_wrapper)
    use(pipe, planner)
    pipe.transformer.reset_attention_backend()
    assert {getattr(p, "_attention_backend", None) for p in inner} == {None}


@pytest.mark.parametrize("name", ["flux", "ltx", "wan"])
def test_projections_fused_after_accelerate_are_used(name):
    pipe, call = FAMILIES[name]()
    planner = RecordingPlanner()
    use(pipe, planner)
    pipe.transformer.fuse_qkv_projections()
    assert all(
        each.module.fused_projections
        for each in find_attention(pipe.transformer, ditaccel.pipelines.adapters()[name].attention)
    )
    fused = generate(pipe, call)
    assert len(planner.seen) == len(processors(pipe.transformer)) * 2 * call[
        "num_inference_steps"
    ] // (2 if name == "ltx" else 1)
    ditaccel.restore(pipe)
    assert torch.equal(generate(pipe, call), fused)


def test_a_family_that_fuses_by_other_processors():
    """Before accelerate, after it, and taken back: in force at the next call."""
    pipe, call = FAMILIES["cogvideox"]()
    dense = generate(pipe, call)
    planner = RecordingPlanner()
    pipe.transformer.fuse_qkv_projections()
    fused = generate(pipe, call)

    def asked():
        found = len(planner.seen)
        planner.seen.clear()
        return found

    with observed(pipe, planner):
        assert torch.equal(generate(pipe, call), fused)
        calls = asked()
    pipe.transformer.unfuse_qkv_projections()

    use(pipe, planner)
    pipe.transformer.fuse_qkv_projections()
    assert torch.equal(generate(pipe, call), fused) and asked() == calls > 0
    pipe.transformer.unfuse_qkv_projections()  # which puts back the wrappers that it found
    assert torch.equal(generate(pipe, call), dense) and asked() == calls
    pipe.transformer.fuse_qkv_projections()
    assert torch.equal(generate(pipe, call), fused) and asked() == calls
    ditaccel.restore(pipe)
    assert not any(hasattr(p, "_ditaccel_inner") for p in all_processors(pipe))
    assert torch.equal(generate(pipe, call), fused) and not asked()
    # diffusers kept wrappers, and puts them back
    pipe.transformer.unfuse_qkv_projections()
    assert torch.equal(generate(pipe, call), dense) and not asked()
    with observed(pipe, planner):
        assert torch.equal(generate(pipe, call), dense) and asked() == calls
    assert not any(hasattr(p, "_ditaccel_inner") for p in all_processors(pipe))


def test_replaced_processors_are_wrapped_in_their_turn():
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    pipe, call = FAMILIES["wan"]()
    dense = generate(pipe, call)
    planner = RecordingPlanner(every_other_tile)
    use(pipe, planner)
    sparse = generate(pipe, call)
    own = WanAttnProcessor()
    pipe.transformer.set_attn_processor(own)
    assert torch.equal(generate(pipe, call), sparse)
    ditaccel.restore(pipe)
    assert all(p is own for p in all_processors(pipe))
    assert torch.equal(generate(pipe, call), dense)


@pytest.mark.parametrize("name", ["flux", "sd3", "wan"])
def test_the_class_of_a_wrapper_gives_the_familys_own_processors(name):
    """diffusers makes processors anew by `processor.__class__()` (IP-Adapter, motion modules)."""
    pipe, call = FAMILIES[name]()
    dense = generate(pipe, call)
    own = [type(p) for p in all_processors(pipe)]
    ditaccel.accelerate(pipe, LITE_DENSE)
    anew = {name: p.__class__() for name, p in pipe.transformer.attn_processors.items()}
    assert set(own) <= {type(p) for p in anew.values()}
    assert not any(hasattr(p, "_ditaccel_inner") for p in anew.values())
    pipe.transformer.set_attn_processor(dict(anew))
    assert torch.allclose(generate(pipe, call), dense, atol=1e-4)
    assert ditaccel.report(pipe).attention[0].rows()
    ditaccel.restore(pipe)
    assert set(map(id, all_processors(pipe))) <= set(map(id, anew.values()))
    assert torch.equal(generate(pipe, call), dense)


def test_linear_attention_is_refused_and_nothing_is_left():
    from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0

    pipe, _ = FAMILIES["dit"]()
    pipe.transformer.transformer_blocks[2].attn1.processor = SanaLinearAttnProcessor2_0()
    clean = traces(pipe)
    with pytest.raises(
        ditaccel.UnsupportedError,
        match=r"SanaLinearAttnProcessor2_0 of transformer_blocks\.2\.attn1 .*linear attention",
    ):
        ditaccel.accelerate(
            pipe,
            cache=ditaccel.TaylorSeerConfig(),
            attention=ditaccel.LiteAttentionConfig(),
        )
    assert traces(pipe) == clean


def test_adapters_with_weights_and_missing_processors_are_refused():
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    pipe, _ = FAMILIES["flux"]()
    first = pipe.transformer.transformer_blocks[0].attn
    own = first.processor
    first.processor = FluxIPAdapterAttnProcessor(hidden_size=32, cross_attention_dim=16)
    with pytest.raises(ditaccel.UnsupportedError, match=r"has weights of its own .*; unload it"):
        ditaccel.accelerate(pipe, attention=ditaccel.LiteAttentionConfig())
    del first.processor
    first.processor = lambda *args: None
    with pytest.raises(ditaccel.UnsupportedError, match="no attention processor written in Python"):
        ditaccel.accelerate(pipe, attention=ditaccel.LiteAttentionConfig())
    first.processor = own
    ditaccel.accelerate(pipe, attention=ditaccel.LiteAttentionConfig())


def test_accelerating_twice_replaces_what_is_on():
    pipe, call = FAMILIES["sd3"]()
    dense = generate(pipe, call)
    config = ditaccel.LiteAttentionConfig(**SMALL)
    ditaccel.accelerate(pipe, attention=config)
    for again in (pipe, pipe.transformer):
        with pytest.warns(UserWarning, match="was accelerated already"):
            ditaccel.accelerate(again, attention=config)
    ditaccel.restore(pipe)
    assert torch.equal(generate(pipe, call), dense)


def test_an_exception_in_mid_run_leaves_no_state():
    config = ditaccel.LiteAttentionConfig(threshold=-0.02, dense_steps=0, **SMALL)
    fresh, call = FAMILIES["wan"]()
    ditaccel.accelerate(fresh, attention=config)
    expected = generate(fresh, call)
    pipe, _ = FAMILIES["wan"]()
    ditaccel.accelerate(pipe, attention=config)
    calls = []

    def explode(module, args):
        calls.append(1)
        if len(calls) == 7:
            raise RuntimeError("boom")

    handle = pipe.transformer.blocks[2].register_forward_pre_hook(explode)
    with pytest.raises(RuntimeError, match="boom"):
        generate(pipe, call)
    handle.remove()
    assert torch.equal(generate(pipe, call), expected)
    assert ditaccel.report(pipe).attention[0].density < 1


@pytest.mark.parametrize("name", ATTENTION_FAMILIES)
def test_sparse_maps_reach_the_attention(name):
    """Of families that go through diffusers' dispatcher, and of those that call SDPA themselves."""
    pipe, call = FAMILIES[name]()
    dense = generate(pipe, call)
    planner = RecordingPlanner(every_other_tile)
    with observed(pipe, planner):
        assert not torch.equal(generate(pipe, call), dense)
        log = ditaccel.report(pipe).attention[0]
        assert 0.4 < log.density < 0.6
        assert {r["reason"] for r in log.rows()} == {"every other tile"}


@pytest.mark.parametrize("name", ATTENTION_FAMILIES)
def test_it_is_known_who_calls_sdpa_without_the_dispatcher(name):
    pipe, _ = FAMILIES[name]()
    names = {n for p in all_processors(pipe) for n in type(p).__call__.__code__.co_names}
    assert ("dispatch_attention_fn" in names) == FAMILIES[name].dispatches
    assert ("scaled_dot_product_attention" in names) != FAMILIES[name].dispatches
