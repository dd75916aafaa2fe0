"""A transformer that is compiled as a whole after `accelerate`."""

import copy
import pickle
import warnings

import pytest
import torch
from tiny import generate, tiny_dit, tiny_wan

import ditaccel

INSIDE = "taylorseer:interval=2"
OUTSIDE = "taylorseer:interval=2,granularity=last_block,target=output"


@pytest.fixture(autouse=True)
def no_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_compile_is_refused_at_the_very_line_and_again_itself_after_restore():
    pipe, call = tiny_dit()
    dense = generate(pipe, call)
    before = sorted(vars(pipe.transformer))
    ditaccel.accelerate(pipe, INSIDE)
    expected = generate(pipe, call)
    with pytest.raises(ditaccel.UnsupportedError, match="compile its blocks instead"):
        pipe.transformer.compile(backend="eager")
    assert torch.equal(generate(pipe, call), expected)
    ditaccel.restore(pipe)
    assert sorted(vars(pipe.transformer)) == before
    pipe.transformer.compile(backend="eager")
    torch.testing.assert_close(generate(pipe, call), dense, rtol=1e-4, atol=1e-4)


def test_copies_compile_themselves():
    pipe, call = tiny_dit()
    dense = generate(pipe, call)
    ditaccel.accelerate(pipe, INSIDE)
    expected = generate(pipe, call)
    for twin in (copy.deepcopy(pipe.transformer), pickle.loads(pickle.dumps(pipe.transformer))):
        twin.compile(backend="eager")
        assert twin._compiled_call_impl is not None
        other = copy.copy(pipe)
        other.transformer = twin
        torch.testing.assert_close(generate(other, call), dense, rtol=1e-4, atol=1e-4)
        again = copy.deepcopy(twin)
        again.compile(backend="eager")
        assert again._compiled_call_impl is not twin._compiled_call_impl
    assert torch.equal(generate(pipe, call), expected)


@pytest.mark.parametrize("make", [pytest.param(tiny_dit, marks=pytest.mark.slow), tiny_wan])
def test_methods_from_outside_stand_in_front_of_the_graph(make):
    pipe, call = make()
    ditaccel.accelerate(pipe, OUTSIDE)
    expected = generate(pipe, call)
    per_run = ditaccel.report(pipe).total_calls
    transformer = pipe.transformer
    pipe.transformer = torch.compile(transformer, backend="eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="ditaccel.*")
        for _ in range(2):
            result = generate(pipe, call)
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    report = ditaccel.report(pipe)
    assert report.total_calls == 3 * per_run and report.computed_share == pytest.approx(0.5)
    ditaccel.restore(pipe)
    assert vars(transformer).get("_compiled_call_impl") is None
    assert vars(pipe.transformer).get("_compiled_call_impl") is None


@torch.no_grad()
def test_a_bare_transformer_inside_a_larger_graph():
    transformer = tiny_wan()[0].transformer
    latents, text = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 6, 16)

    def run(model):
        return [model(latents, torch.tensor([t]), text)[0] for t in (900.0, 700.0, 500.0)]

    ditaccel.accelerate(transformer, OUTSIDE)
    expected = run(transformer)
    compiled = torch.compile(transformer, backend="eager")
    with pytest.warns(UserWarning, match="part of a larger compiled graph: its calls leave"):
        results = run(compiled)
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-4)
    ditaccel.restore(transformer)
    ditaccel.accelerate(transformer, INSIDE)
    with pytest.raises(ditaccel.UnsupportedError, match="compiled as a whole"):
        run(compiled)
