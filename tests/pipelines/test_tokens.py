"""Where the adapters say image, video and text tokens are, and where the transformers have them."""

import inspect

import pytest
import torch
from ditaccel.pipelines import adapters
from planners import RecordingPlanner, use
from tiny import generate
from tiny_families import ATTENTION_FAMILIES, FAMILIES, family_of

import ditaccel
from ditaccel.attention.runtime import find_attention
from ditaccel.calls import as_tensor


class Stop(Exception):
    """Enough was seen."""


def first_call(pipe, call, **changes):
    """Arguments, by name, with which the pipeline calls its transformer."""
    seen = {}
    names = list(inspect.signature(pipe.transformer.forward).parameters)

    def catch(module, args, kwargs):
        seen.update(zip(names, args, strict=False), **kwargs)
        raise Stop

    handle = pipe.transformer.register_forward_pre_hook(catch, with_kwargs=True)
    with pytest.raises(Stop):
        generate(pipe, call, **changes)
    handle.remove()
    return seen


@pytest.mark.parametrize("name", FAMILIES)
def test_arguments_are_the_ones_that_carry_latents_and_timestep(name):
    pipe, call = FAMILIES[name]()
    adapter = adapters()[family_of(name)]
    kwargs = first_call(pipe, call)
    assert torch.is_tensor(kwargs[adapter.timestep])
    branches = 2 if adapter.guidance == "batched" else 1
    assert len(as_tensor(kwargs[adapter.sample])) == FAMILIES[name].images * branches


@pytest.mark.parametrize("name", ATTENTION_FAMILIES)
def test_token_count_and_text_side_are_the_real_ones(name, monkeypatch):
    """Other latents move exactly the rows of the first layer's queries that are not text."""
    pipe, call = FAMILIES[name]()
    adapter = adapters()[family_of(name)]
    kwargs = first_call(pipe, call)
    latents = as_tensor(kwargs[adapter.sample])
    listed = isinstance(kwargs[adapter.sample], list)
    planner = RecordingPlanner()
    ditaccel.accelerate(pipe, attention=use(monkeypatch, planner))
    with torch.no_grad():
        for sample in (latents, latents + torch.randn(latents.shape)):
            given = list(sample) if listed else sample
            pipe.transformer(**{**kwargs, adapter.sample: given})
    per_call = len(planner.seen) // 2
    (context, before), (_, after) = planner.seen[0], planner.seen[per_call]
    moved = (before != after).any(-1).any(1).all(0)
    assert torch.equal(moved, (before != after).any(-1).any(1).any(0))
    expected = torch.ones(context.length, dtype=torch.bool)
    if context.text is not None:
        expected[slice(*context.text)] = False
    if adapter.given is not None:
        shapes = {k: tuple(v.shape) for k, v in kwargs.items() if torch.is_tensor(v)}
        expected[: adapter.given(pipe.transformer.config, shapes)] = False
    assert torch.equal(moved, expected)
    assert (context.text is not None) == (adapter.text != "none")
    tokens = adapter.tokens(pipe.transformer.config, tuple(latents.shape))
    assert int(expected.sum()) == tokens >= 100


@pytest.mark.parametrize("name", ATTENTION_FAMILIES)
def test_token_count_follows_the_size(name):
    pipe, call = FAMILIES[name]()
    adapter = adapters()[family_of(name)]
    sample = as_tensor(first_call(pipe, call, **FAMILIES[name].resized)[adapter.sample])
    tokens = adapter.tokens(pipe.transformer.config, tuple(sample.shape))
    assert tokens == FAMILIES[name].resized_tokens


@pytest.mark.parametrize("name", ATTENTION_FAMILIES)
def test_attention_modules_are_listed_in_the_order_in_which_they_run(name):
    pipe, call = FAMILIES[name]()
    modules = find_attention(pipe.transformer, adapters()[family_of(name)].attention)
    order = []
    for index, each in enumerate(modules):
        each.module.register_forward_hook(lambda *_, index=index: order.append(index))
    generate(pipe, call, num_inference_steps=2)
    assert order[: len(modules)] == list(range(len(modules)))
    if name == "sd3":
        assert [m.name.split(".", 1)[1] for m in modules[:3]] == ["0.attn", "0.attn2", "1.attn"]
