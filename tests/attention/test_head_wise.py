"""Head-wise attention: each head gets what its map alone would give it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import generate, tiny_wan

import ditaccel
from ditaccel import config
from ditaccel.attention.engine.attend import attend
from ditaccel.attention.engine.planner import Dense, LayerContext
from ditaccel.attention.head_wise import HeadWiseConfig
from ditaccel.core.denoising.tracker import DenoisingStep
from ditaccel.errors import ConfigError

LENGTH, WIDTH, SCALE = 75, 8, 0.4
OPEN = {"min_tokens": 0, "dense_steps": 0, "dense_layers": 0, "break_even": 1.0}
# tiles of two sizes, tiles that vary in size, orders, and marks
MAPS = (
    "sla:critical=0.3,rest=moments,q_tile=16,k_tile=16",
    "svg2:q_clusters=4,k_clusters=8,top_p=0.5,min_share=0.0",
    "lite_attention:threshold=-0.5,q_tile=32,k_tile=16,retest=0",
    "sla:critical=0.2,rest=nothing,q_tile=32,k_tile=16,cube=[2,2,2]",
)


def context(index=0, layer=1, **changes):
    step = DenoisingStep(0, index, "cond", 500.0, sigma=0.5, total=10)
    return LayerContext(step, layer, 4, LENGTH, **{"grid": (3, 5, 5), **changes})


def tensors(heads=8, kv_heads=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(2, h, LENGTH, WIDTH, generator=generator) for h in (heads, kv_heads, kv_heads)
    )


def alone(text, heads, steps, mask=None):
    """What a map alone gives to some heads, step by step; and its densities."""
    made = replace(config.parse_spec(text).attention, **OPEN)
    planner, state, found = made.planner(), {}, []
    for index in range(steps):
        q, k, v = tensors(seed=index)
        keys = sorted({h // 2 for h in heads})
        q, k, v = q[:, heads], k[:, keys], v[:, keys]
        plan = planner.plan(q, k, v, SCALE, context(index, key_mask=mask), state)
        result = attend(plan, q, k, v, SCALE, mask)
        planner.update(plan, result, state)
        found.append((result.output, plan.tile_map.densities()))
    return found


@torch.no_grad()
@pytest.mark.parametrize("padded", [0, 9])
def test_each_head_gets_what_its_map_alone_gives(padded):
    mask = (torch.arange(LENGTH) < LENGTH - padded).expand(2, -1) if padded else None
    chosen = (3, 3, 1, 1, 0, 0, 2, 2)
    made = HeadWiseConfig(maps=MAPS, heads=(chosen,) * 4, **OPEN)
    planner, state = made.planner(), {}
    expected = {
        number: alone(MAPS[number], [h for h in range(8) if chosen[h] == number], 3, mask)
        for number in range(4)
    }
    for index in range(3):
        q, k, v = tensors(seed=index)
        plan = planner.plan(q, k, v, SCALE, context(index, key_mask=mask), state)
        result = attend(plan, q, k, v, SCALE, mask)
        planner.update(plan, result, state)
        densities = plan.tile_map.densities()
        for number in range(4):
            heads = [h for h in range(8) if chosen[h] == number]
            out, density = expected[number][index]
            assert torch.allclose(result.output[:, heads], out, atol=1e-5), (number, index)
            assert torch.allclose(densities[:, heads], density.expand(2, 2)), (number, index)
    assert not plan.blind  # the marks of two steps are there


@torch.no_grad()
def test_one_map_for_all_heads_is_that_map():
    made = HeadWiseConfig(maps=MAPS[2:3], **OPEN)
    planner, state = made.planner(), {}
    for (out, density), index in zip(alone(MAPS[2], list(range(8)), 3), range(3), strict=True):
        q, k, v = tensors(seed=index)
        plan = planner.plan(q, k, v, SCALE, context(index), state)
        result = attend(plan, q, k, v, SCALE)
        planner.update(plan, result, state)
        assert torch.equal(result.output, out)
        assert torch.equal(plan.tile_map.densities(), density)


def test_options_of_its_own_hold_for_all_maps():
    made = HeadWiseConfig(maps=MAPS[:2], rest="nothing", dense_steps=1, min_tokens=0)
    planner = made.planner()
    q, k, v = tensors()
    assert isinstance(planner.plan(q, k, v, SCALE, context(0), {}), Dense)
    assert rests(planner.plan(q, k, v, SCALE, context(1), {})) == {"nothing"}
    planner = replace(made, rest=None).planner()
    assert rests(planner.plan(q, k, v, SCALE, context(1), {})) == {"moments", "means"}


def rests(plan):
    """What stands for the rest in the parts of a plan that have none themselves."""
    return set().union(*map(rests, plan.parts)) if plan.parts else {plan.rest}


def test_on_a_model_it_is_exact_where_its_maps_are_and_undone():
    pipe, call = tiny_wan(layers=2)
    call = {**call, "num_inference_steps": 5, "height": 96, "width": 96}
    dense = generate(pipe, call)
    example = HeadWiseConfig.examples()[0]
    with ditaccel.accelerated(pipe, attention=example.exact):
        exact = generate(pipe, call)
        assert "head-wise" in {row["reason"] for row in ditaccel.report(pipe).attention[0].rows()}
    assert float((exact - dense).norm() / dense.norm()) < 1e-5
    with ditaccel.accelerated(pipe, attention=example.skipping):
        first = generate(pipe, call)
        assert torch.equal(first, generate(pipe, call))  # nothing of the first run is left
        assert ditaccel.report(pipe).attention[0].density < 1
    assert not torch.allclose(first, dense)
    assert torch.equal(generate(pipe, call), dense)


def test_it_comes_back_from_a_file(tmp_path):
    made = HeadWiseConfig(maps=MAPS, heads=((0, 1), (2, 3)))
    config.AccelerationConfig(attention=made).save(tmp_path / "mine.yaml")
    assert config.load(tmp_path / "mine.yaml").attention == made
    assert config.parse_spec(config.method_spec(made)).attention == made


@pytest.mark.parametrize(
    "options, line",
    [
        ({"maps": ("taylorseer",)}, "maps holds 'taylorseer'; give one attention method each"),
        ({"maps": ("head_wise",)}, "maps holds 'head_wise'; give one attention method each"),
        ({"maps": ("slo",)}, "slo"),
        ({"maps": ("svg2",), "heads": ((0, 1),)}, "heads names map [1], but maps has 1"),
    ],
)
def test_what_cannot_be_is_one_line(options, line):
    with pytest.raises(ConfigError) as caught:
        HeadWiseConfig(**options)
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, line",
    [
        ({}, "head_wise needs maps"),
        ({"maps": ("svg2:precision=int8",)}, "give it to head_wise, for all maps"),
        ({"maps": MAPS, "heads": ((0,) * 8,)}, "heads has 1 layers, but the transformer has 4"),
        ({"maps": MAPS, "heads": ((0, 1),) * 4}, "heads has 2 heads in layer 1, but there are 8"),
        ({"maps": MAPS, "heads": ((0, 1) * 4,) * 4}, "gives different maps to heads of layer 1"),
    ],
)
def test_a_choice_for_another_model_is_one_line(options, line):
    with pytest.raises(ConfigError, match=line):
        planner = HeadWiseConfig(**options, **OPEN).planner()
        planner.plan(*tensors(), SCALE, context(), {})
