"""Options that every attention method has: a schedule along the loop, and sinks."""

from dataclasses import replace

import pytest
import torch
from planners import computed_pairs, context_of
from tiny import generate, peaked

import ditaccel
from ditaccel import LiteAttentionConfig, SLAConfig, SVG2Config
from ditaccel.attention.engine.attend import attend
from ditaccel.attention.engine.options import TileOptions, along
from ditaccel.attention.engine.planner import Plan, planner_of
from ditaccel.config import AccelerationConfig, from_dict, methods, to_dict

GRID, TEXT, LENGTH = (3, 8, 8), 20, 212
METHODS = {name: kind for name, kind in methods().items() if issubclass(kind, TileOptions)}
SCHEDULED = [name for name, kind in METHODS.items() if kind.scheduled_option()]


def _tensors(heads=4, kv_heads=2):
    generator = torch.Generator().manual_seed(0)
    return tuple(
        2 * torch.randn(2, h, LENGTH, 16, generator=generator) for h in (heads, kv_heads, kv_heads)
    )


def _plans(config, steps, **changes):
    """The plans of a loop of ten steps, each carried out."""
    q, k, v = _tensors()
    planner, state = planner_of(config), {}
    for index in range(steps):
        context = context_of(LENGTH, index, **changes)
        plan = planner.plan(q, k, v, 0.25, context, state)
        assert isinstance(plan, Plan)
        planner.update(plan, attend(plan, q, k, v, 0.25), state)
        yield plan


def test_a_schedule_is_straight_between_its_points():
    points = ((0.2, 1.0), (0.6, 3.0), (0.8, 3.0), (0.8001, 0.0))
    found = [round(along(points, share), 9) for share in (0, 0.2, 0.3, 0.6, 0.7, 0.8, 1)]
    assert found == [1.0, 1.0, 1.5, 3.0, 3.0, 3.0, 0.0]


@pytest.mark.parametrize("name", SCHEDULED)
def test_every_method_with_a_density_follows_a_schedule(name):
    example = METHODS[name].examples()[0]
    option = METHODS[name].scheduled_option()
    most, least = (getattr(config, option) for config in (example.exact, example.skipping))
    if not isinstance(most, float):  # a count, where a share is a number too
        most = METHODS[name].swept.values[-1]
    constant = replace(example.skipping, **{option: most})
    config = replace(example.skipping, schedule=((0.4, most), (0.5, least)))
    densities, most_kept, least_kept = (
        [plan.tile_map.density() for plan in _plans(each, 9, grid=GRID)]
        for each in (config, constant, example.skipping)
    )
    assert densities[:4] == most_kept[:4]
    # (where the option makes no difference at this size, a schedule of it makes none)
    assert max(densities[6:]) < min(most_kept[6:]) or most_kept == least_kept
    given = AccelerationConfig(attention=config)
    assert from_dict(to_dict(given)) == given


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (SVG2Config, {"schedule": ((0.5, 0.9), (0.1, 0.5))}, "give them ascending, from 0 to 1"),
        (SVG2Config, {"schedule": ((0, 0.9), (1, 1.5))}, "at 1 of the loop: top_p is 1.5"),
        (LiteAttentionConfig, {"schedule": ((0, 3.0),)}, "at 0 of the loop: threshold is 3"),
        (
            LiteAttentionConfig,
            {"schedule": ((0, -3.0),), "thresholds": (-1.0,)},
            "give one of them",
        ),
        (SLAConfig, {"sinks": ("last_frame",)}, "first_frame"),
        (SLAConfig, {"sink_tokens": ((5, 3),)}, "sink_tokens: the range 5 to 3 is empty"),
    ],
)
def test_bad_options_are_refused_in_one_line(config, options, message):
    with pytest.raises(ditaccel.ConfigError, match=message) as error:
        config(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("queries", [False, True])
def test_every_method_keeps_sinks_and_text(name, queries):
    for example in METHODS[name].examples():
        config = replace(
            example.skipping,
            sinks=("first_frame",),
            sink_tokens=((100, 101), (200, 203)),
            sink_queries=queries,
        )
        *_, plan = _plans(config, 3, grid=GRID, text=(0, TEXT))
        pairs = computed_pairs(plan, 2, 4, LENGTH)
        sinks = [*range(TEXT + 64), 100, 200, 201, 202]
        assert bool(pairs[..., sinks].all()) and bool(pairs[..., :TEXT, :].all())
        assert not bool(pairs.all()), "nothing was skipped"
        if queries:
            assert bool(pairs[..., sinks, :].all())


def test_sinks_where_nobody_knows_them_are_refused():
    config = METHODS["sla"].examples()[0].skipping
    with pytest.raises(ditaccel.ConfigError, match=r"this is a picture, or .* sink_tokens"):
        list(_plans(replace(config, sinks=("first_frame",)), 1, grid=(1, 12, 16), text=(0, TEXT)))
    with pytest.raises(ditaccel.ConfigError, match="has conditions, but where"):
        list(_plans(replace(config, sinks=("conditions",)), 1))
    with pytest.raises(ditaccel.ConfigError, match="does not fit into a sequence of 212"):
        list(_plans(replace(config, sink_tokens=((0, 300),)), 1))


def test_given_images_are_sinks_and_the_grid_is_found_next_to_them():
    context = context_of(LENGTH, grid=(2, 8, 10), text=(0, TEXT), conditions=(180, LENGTH))
    assert context.grid_tokens == (TEXT, 180)
    in_front = context_of(LENGTH, grid=(2, 8, 10), text=(192, LENGTH), conditions=(0, 32))
    assert in_front.grid_tokens == (32, 192)
    assert context_of(LENGTH, grid=(2, 8, 10), text=(0, TEXT)).grid_tokens is None
    config = replace(METHODS["sla"].examples()[0].skipping, sinks=("conditions",), cube=(1, 4, 4))
    *_, plan = _plans(config, 1, grid=(2, 8, 10), text=(0, TEXT), conditions=(180, LENGTH))
    pairs = computed_pairs(plan, 2, 4, LENGTH)
    assert bool(pairs[..., 180:].all()) and not bool(pairs[..., 180:, :].all())


def test_conditions_come_from_the_family():
    pipe, call = peaked("framepack")
    call = {**call, "num_inference_steps": 2}
    config = replace(METHODS["sla"].examples()[0].skipping, sinks=("conditions",))
    with ditaccel.accelerated(pipe, attention=config):
        generate(pipe, call)
        assert ditaccel.report(pipe).attention[0].density < 1
