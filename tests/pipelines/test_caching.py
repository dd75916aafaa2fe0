"""Caching through the block contracts of every family."""

import pytest
import torch
from ditaccel.pipelines import adapter_for, submodule
from tiny import FAMILIES, generate, other_prompt

import ditaccel


@pytest.mark.parametrize("name", FAMILIES)
def test_another_prompt_and_another_size_equal_a_fresh_pipeline(name):
    """Nothing is carried from one generation to the next, in either direction."""
    config = "adaptive_taylor:tolerance=1e9,warmup=2"
    pipe, call = FAMILIES[name]()
    ditaccel.accelerate(pipe, config)
    for changes in (other_prompt(call), {**call, **FAMILIES[name].resized}, call):
        fresh, _ = FAMILIES[name]()
        with ditaccel.accelerated(fresh, config):
            expected = generate(fresh, changes)
            assert ditaccel.report(fresh).forecasts > 0
        assert torch.equal(generate(pipe, changes), expected)
    assert not torch.equal(generate(pipe, other_prompt(call)), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_preset_runs(name):
    pipe, call = FAMILIES[name]()
    for preset in ("safe", "balanced", "fast"):
        with ditaccel.accelerated(pipe, preset):
            assert torch.isfinite(generate(pipe, call)).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_modules_forecast_from_their_own_outputs(name):
    """Order 0 at module granularity repeats the computed step: modules, not blocks, are skipped.

    And every step is known, the last one too, whatever timesteps the family is given.
    """
    pipe, call = FAMILIES[name]()
    with ditaccel.accelerated(pipe, "taylorseer:interval=2,order=0,granularity=module,final=1"):
        generate(pipe, call)
        report = ditaccel.report(pipe)
        forecast = [c for c in report.calls if c.action == "forecast"]
        assert forecast and {c.blocks_run for c in forecast} == {0}
        assert report.tensors_per_branch == sum(1 for _ in _forecast_modules(pipe.transformer))
        steps = list(dict.fromkeys(c.step for c in report.calls))
        assert steps == list(range(len(pipe.scheduler.timesteps)))
        assert {c.generation for c in report.calls} == {0}
        assert {c.reason for c in report.calls if c.step == steps[-1]} == {"last step"}


def _forecast_modules(transformer):
    for contract in adapter_for(type(transformer).__name__).blocks:
        for block in getattr(transformer, contract.container):
            modules = [submodule(block, role) for role in contract.forecast_modules]
            yield from (module for module in modules if module is not None)
