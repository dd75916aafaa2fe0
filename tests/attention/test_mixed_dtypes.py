"""Queries, keys and values of different dtypes: autocast, norms in float32, storage in 8 bits."""

import warnings

import pytest
import torch
from conformance import METHODS, relative_rmse, short
from ditaccel.kernels import TileMap, Tiling, tile_attention
from planners import RecordingPlanner
from tiny import ATTENTION_FAMILIES, FAMILIES, generate

import ditaccel
from ditaccel.attention.engine.masks import KeyMask
from ditaccel.attention.engine.processor import ProcessorSeam
from ditaccel.attention.engine.runtime import find_attention
from ditaccel.core.patching import PatchLedger
from ditaccel.tuning.observe import observed

SPARSE = ["lite_attention", "svg2", "sla"]
# bfloat16 has 8 bits: one rounding of each output, and one of probabilities ahead of the values
BF16 = 6e-3
# where the latents are, in sequences whose padding of text sees itself
IMAGE = {"ideogram4": slice(8, None)}


def every(*names):
    """All families; those that are not named are slow."""
    return [
        name if name in names else pytest.param(name, marks=pytest.mark.slow)
        for name in ATTENTION_FAMILIES
    ]


def autocast(dtype=torch.bfloat16):
    return torch.autocast("cpu", dtype=dtype)


def transformers(pipe):
    parts = (getattr(pipe, name, None) for name in ("transformer", "transformer_2"))
    return [part for part in parts if part is not None]


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ATTENTION_FAMILIES)
def test_each_call_has_the_dtype_and_values_of_the_familys_own(name):
    pipe, call = FAMILIES[name]()
    call = short(call, 2)
    seen = []

    def attend(layer, dense, q, k, v, mask, scale, split):
        own = dense()
        assert q.dtype == k.dtype == v.dtype == own.dtype == torch.bfloat16
        assert not torch.is_autocast_enabled("cpu")
        full = TileMap.dense(*(Tiling.fixed(q.shape[2], 16) for _ in range(2)))
        keys = None if mask is None else KeyMask(mask, IMAGE.get(name)).keys
        out = tile_attention(q, k, v, full, scale=scale, mask=keys).output
        assert out.dtype == own.dtype
        if keys is not None:
            own, out = (x * keys[:, None, :, None] for x in (own, out))
        seen.append(relative_rmse(out, own))
        return own

    ledger = PatchLedger(None)
    with autocast():
        plain = generate(pipe, call)
        for part in transformers(pipe):
            adapter = ditaccel.pipelines.adapter_for(type(part).__name__)
            ProcessorSeam(find_attention(part, adapter.attention), attend).install(ledger)
        assert torch.equal(generate(pipe, call), plain)
    ledger.undo()
    assert seen and max(seen) < BF16


@pytest.mark.parametrize("method", SPARSE)
@pytest.mark.parametrize("name", every("flux", "sd3"))
def test_methods_under_autocast(name, method):
    pipe, call = FAMILIES[name]()
    specs = METHODS[method]
    in_float32 = generate(pipe, call)
    with autocast():
        dense = generate(pipe, call)
        with ditaccel.accelerated(pipe, specs.exact):
            exact = generate(pipe, call)
        with ditaccel.accelerated(pipe, specs.skipping):
            skipping = generate(pipe, call)
            assert ditaccel.report(pipe).attention[0].density < 1
    assert exact.dtype == skipping.dtype == dense.dtype
    # two roundings of the whole model to bfloat16, which differ from the first layer on
    assert relative_rmse(exact, dense) < 2 * relative_rmse(dense, in_float32)
    assert torch.isfinite(skipping).all() and not torch.equal(skipping, dense)


@pytest.mark.parametrize(
    "name", [*(pytest.param(n, marks=pytest.mark.slow) for n in ("flux", "sd3")), "wan"]
)
def test_compiled_blocks_under_autocast(name, monkeypatch):
    """Casts are in the graph: dense answers are those of the family's own attention."""
    pipe, call = FAMILIES[name]()
    planner = RecordingPlanner()
    with autocast():
        for block in _blocks(pipe.transformer):
            block.compile(fullgraph=True, backend="aot_eager")
        dense = generate(pipe, call, num_inference_steps=5)
        torch._dynamo.reset()
        with observed(pipe, planner):
            assert torch.equal(generate(pipe, call, num_inference_steps=5), dense)
        dtypes = {q.dtype for _, q in planner.seen}
    assert dtypes == {torch.bfloat16}
    monkeypatch.undo()
    torch._dynamo.reset()
    with autocast(), ditaccel.accelerated(pipe, METHODS["svg2"].skipping):
        result = generate(pipe, call, num_inference_steps=5)
        assert ditaccel.report(pipe).attention[0].density < 1
    assert result.dtype == dense.dtype and torch.isfinite(result).all()


def _blocks(transformer):
    adapter = ditaccel.pipelines.adapter_for(type(transformer).__name__)
    return [b for c in adapter.blocks for b in getattr(transformer, c.container)]


@pytest.mark.parametrize("method", SPARSE)
def test_norms_that_give_float32_without_autocast(method):
    """What attention itself refuses stays its own error."""
    pipe, call = FAMILIES["wan"]()
    pipe.transformer.to(torch.bfloat16)
    for block in pipe.transformer.blocks:
        block.attn1.norm_q.to(torch.float32).register_forward_hook(lambda *a: a[-1].float())
    call = {k: v.bfloat16() if torch.is_tensor(v) else v for k, v in call.items()}
    with pytest.raises(RuntimeError) as own:
        generate(pipe, call)
    with (
        ditaccel.accelerated(pipe, METHODS[method].skipping),
        pytest.warns(UserWarning, match=r"differ in dtype \(float32, bfloat16, bfloat16\)"),
        pytest.raises(RuntimeError) as ours,
    ):
        generate(pipe, call)
    assert str(ours.value) == str(own.value)


@pytest.mark.parametrize("method", SPARSE)
@pytest.mark.parametrize("name", every("flux", "sd3"))
def test_weights_stored_in_8_bits(name, method):
    pipe, call = FAMILIES[name]()
    in_float32 = generate(pipe, call)
    with autocast():
        rounding = relative_rmse(generate(pipe, call), in_float32)
    for part in transformers(pipe):
        part.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16
        )
    with autocast():
        dense = generate(pipe, call)
        with ditaccel.accelerated(pipe, METHODS[method].exact):
            exact = generate(pipe, call)
    assert exact.dtype == dense.dtype and relative_rmse(exact, dense) < 2 * rounding


def test_float64_is_left_as_it_is():
    """Autocast leaves it alone too, and so attention refuses it beside bfloat16."""
    from ditaccel.attention.engine.processor import _cast

    double = torch.zeros(2, dtype=torch.float64)
    assert _cast(double, torch.bfloat16) is double
    whole = torch.zeros(2, dtype=torch.bool)
    assert _cast(whole, torch.bfloat16) is whole
