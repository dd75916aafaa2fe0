"""A transformer that several ranks compute together is refused, however it was split."""

import pytest
from diffusers import ContextParallelConfig
from diffusers.hooks.hooks import HookRegistry, ModelHook
from inspection import traces
from tiny import generate, tiny_dit, tiny_flux, tiny_wan

import ditaccel

MESSAGE = r"transformer is split over several ranks .* run one whole pipeline per rank instead"


def by_config(transformer):
    transformer._parallel_config = ContextParallelConfig(ulysses_degree=2)


def by_processors(transformer):
    for module in transformer.modules():
        if hasattr(getattr(module, "processor", None), "_parallel_config"):
            module.processor._parallel_config = ContextParallelConfig(ring_degree=2)


def by_hooks(transformer):
    block = transformer.get_submodule("blocks.0" if hasattr(transformer, "blocks") else "")
    registry = HookRegistry.check_if_exists_or_initialize(block)
    registry.register_hook(ModelHook(), "cp_input---blocks.0")


@pytest.mark.parametrize("make", [tiny_wan, tiny_flux])
@pytest.mark.parametrize("split", [by_config, by_processors, by_hooks])
def test_split_transformers_are_refused_and_left_alone(make, split):
    pipe, _ = make()
    split(pipe.transformer)
    before = traces(pipe)
    with pytest.raises(ditaccel.UnsupportedError, match=MESSAGE):
        ditaccel.accelerate(pipe)
    with pytest.raises(ditaccel.UnsupportedError, match=MESSAGE):
        ditaccel.tune(pipe, ["a"], ditaccel.Target(computed_share=0.5))
    assert traces(pipe) == before


@pytest.mark.parametrize("split", [by_config, by_processors, by_hooks])
def test_splitting_after_accelerate_is_refused_by_the_next_generation(split):
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe)
    generate(pipe, call)
    split(pipe.transformer)
    with pytest.raises(ditaccel.UnsupportedError, match=MESSAGE):
        generate(pipe, call)
    ditaccel.restore(pipe)


def test_whole_pipelines_are_not_refused():
    for make in (tiny_dit, tiny_wan, tiny_flux):
        pipe, _ = make()
        ditaccel.restore(ditaccel.accelerate(pipe))
