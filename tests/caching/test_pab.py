"""Pyramid Attention Broadcast: which kind of attention is computed at which step."""

import pytest
import torch
from inspection import Watched
from tiny import FAMILIES, generate, tiny_flux, tiny_wan

import ditaccel

# kind -> module of a block
WAN = {"spatial": "attn1", "cross": "attn2", "mlp": "ffn"}


def by_the_rule(timesteps, interval, low, high):
    """Steps at which a kind is computed, as the authors' code has it."""
    return [i for i, t in enumerate(timesteps) if i % interval == 0 or not low < t < high]


@pytest.mark.parametrize(
    ("ranges", "low", "high"),
    [
        ({"spatial": 2, "cross": 3}, 100.0, 800.0),
        ({"spatial": 3, "cross": 6, "mlp": 2}, 250.0, 900.0),
        ({"spatial": 1, "cross": 4}, -1.0, 2000.0),
    ],
)
def test_each_kind_is_computed_where_its_range_or_the_timestep_says(ranges, low, high):
    pipe, call = tiny_wan()
    steps, block = [], pipe.transformer.blocks[2]
    plain = Watched()
    ran = {kind: [] for kind in WAN}
    for kind, name in WAN.items():
        plain.outputs(kind, getattr(block, name))
        getattr(block, name).register_forward_hook(
            lambda *_, kind=kind: ran[kind].append(len(steps) - 1)
        )
    pipe.transformer.register_forward_pre_hook(lambda *_: steps.append(0))
    given = {"temporal": 0, **ranges}
    with ditaccel.accelerated(pipe, cache=ditaccel.PABConfig(low=low, high=high, **given)):
        generate(pipe, call, guidance_scale=1.0, num_inference_steps=12)
    timesteps = pipe.scheduler.timesteps.double().tolist()
    assert len(steps) == 12
    for kind in WAN:
        assert ran[kind] == by_the_rule(timesteps, ranges.get(kind, 1), low, high), kind
    assert ran["mlp"] == list(range(12)) or "mlp" in ranges


def test_a_kind_that_rests_gives_what_it_gave_on_its_last_step():
    pipe, call = tiny_wan()
    block = pipe.transformer.blocks[1]
    plain = Watched()
    plain.inputs("before", block.norm2, "x")
    plain.inputs("after", block.norm3, "x")
    plain.outputs("cross", block.attn2)
    config = ditaccel.PABConfig(spatial=2, cross=3, low=-1.0, high=2000.0)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, guidance_scale=1.0, num_inference_steps=7)
    before, after, cross = (plain.seen[key] for key in ("before", "after", "cross"))
    assert len(cross) == 3
    for step in range(7):
        torch.testing.assert_close(after[step], before[step] + cross[step // 3])


@pytest.mark.parametrize("name", ["latte", "cogvideox", "flux"])
def test_the_bounds_are_timesteps_of_the_scheduler(name):
    """Flux hands over the timestep divided by 1000, Latte and CogVideoX the scheduler's own."""
    pipe, call = FAMILIES[name]()
    config = ditaccel.PABConfig(spatial=2, low=100.0, high=600.0)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, {**call, "num_inference_steps": 9})
        calls = ditaccel.report(pipe).calls
    timesteps = pipe.scheduler.timesteps.double().tolist()
    expected = {i for i, t in enumerate(timesteps) if i % 2 and 100.0 < t < 600.0}
    found = {c.step for c in calls if "spatial" in c.reason}
    assert found == expected and expected


def test_ranges_that_mean_nothing_are_refused_in_one_line():
    with pytest.raises(ditaccel.ConfigError, match="no kind of module has a range"):
        ditaccel.PABConfig(spatial=0, temporal=0, cross=0)
    with pytest.raises(ditaccel.ConfigError, match="low is the smaller"):
        ditaccel.PABConfig(low=800, high=100)
    pipe, _ = tiny_flux()
    with pytest.raises(ditaccel.UnsupportedError, match="no modules of the kind temporal here"):
        ditaccel.accelerate(pipe, cache=ditaccel.PABConfig(spatial=0, cross=0))
