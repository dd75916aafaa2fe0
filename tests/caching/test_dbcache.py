"""DBCache: decisions and payload by the rule of cache-dit, worked out in float64."""

import numpy as np
import pytest
import torch
from inspection import Watched, traces, unchanged
from tiny import FAMILIES, generate, tiny_flux, tiny_wan

import ditaccel

STEPS = 12


def run(layers=5, **options):
    """The calls, and what goes into and comes out of each block, as float64 arrays."""
    pipe, call = tiny_wan(layers=layers)
    plain = Watched()
    for index, block in enumerate(pipe.transformer.blocks):
        plain.inputs(f"in{index}", block, "hidden_states")
        plain.outputs(f"out{index}", block)
    with ditaccel.accelerated(pipe, cache=ditaccel.DBCacheConfig(**options)):
        generate(pipe, call, guidance_scale=1.0, num_inference_steps=STEPS)
        calls = ditaccel.report(pipe).calls
    seen = {key: [each.double().numpy() for each in values] for key, values in plain.seen.items()}
    return seen, calls


def by_the_rule(residuals, threshold, warmup=1, interval=1, **limits):
    """Steps that cache-dit computes, from the first blocks' residuals."""
    computed, cached, row, added, kept = [], 0, 0, 0.0, None
    limit = {"max_cached": np.inf, "max_consecutive": np.inf, "max_accumulated": np.inf, **limits}
    for step, residual in enumerate(residuals):
        hit = step not in range(0, warmup, interval)
        hit = hit and cached < limit["max_cached"] and row < limit["max_consecutive"]
        hit = hit and added < limit["max_accumulated"]
        if hit:
            difference = np.abs(residual - kept).mean() / np.abs(kept).mean()
            added += difference
            hit = difference < threshold
        if hit:
            cached, row = cached + 1, row + 1
            continue
        computed.append(step)
        row, kept = 0, residual
    return computed


@pytest.mark.parametrize(
    ("threshold", "given"),
    [
        (0.1, {}),
        (0.15, {"warmup": 4}),
        (0.15, {"warmup": 7, "interval": 3}),
        (0.9, {"max_cached": 4}),
        (0.09, {"max_consecutive": 2, "warmup": 3}),
        (0.15, {"max_accumulated": 0.3}),
    ],
)
def test_decisions_are_those_of_cache_dit(threshold, given):
    options = {"warmup": 1, **given, "threshold": threshold, "first_blocks": 2}
    interval = options.pop("interval", 1)
    seen, calls = run(**options, warmup_interval=interval)
    residuals = [out - into for out, into in zip(seen["out1"], seen["in0"], strict=True)]
    expected = by_the_rule(residuals, threshold, **given)
    assert [c.step for c in calls if c.action == "compute"] == expected
    assert 1 < len(expected) < STEPS


@pytest.mark.parametrize(("first", "last"), [(1, 0), (1, 1), (2, 2), (1, 3)])
def test_the_middle_is_reused_and_the_last_blocks_run_on_it(first, last):
    options = {"threshold": 1e9, "warmup": 2, "max_consecutive": 3}
    seen, calls = run(first_blocks=first, last_blocks=last, **options)
    assert [c.step for c in calls if c.action == "compute"] == [0, 1, 5, 9]
    assert {c.blocks_run for c in calls if c.action == "forecast"} == {first + last}
    ran = {index: len(seen[f"out{index}"]) for index in range(5)}
    assert ran == {i: STEPS if i < first or i >= 5 - last else 4 for i in range(5)}
    if last:
        end = 5 - last - 1  # the last block of the middle
        added, source = [], -1
        for step in range(STEPS):
            if calls[step].action == "compute":
                source += 1
                added = seen[f"out{end}"][source] - seen[f"out{first - 1}"][step]
            entered = seen[f"in{end + 1}"][step]
            expected = seen[f"out{first - 1}"][step] + added
            np.testing.assert_allclose(entered, expected, rtol=1e-4, atol=1e-5)


def test_the_middle_is_forecast_with_an_order():
    options = {"threshold": 1e9, "warmup": 4, "order": 1, "first_blocks": 1, "last_blocks": 1}
    seen, calls = run(**options)
    assert [c.step for c in calls if c.action == "compute"] == [0, 1, 2, 3]
    added = [seen["out3"][step] - seen["out0"][step] for step in (2, 3)]
    for step in range(4, STEPS):
        expected = seen["out0"][step] + added[1] + (step - 3) * (added[1] - added[0])
        np.testing.assert_allclose(seen["in4"][step], expected, rtol=1e-3, atol=1e-4)


def test_text_comes_along_to_the_last_blocks_across_two_lists():
    """FLUX: what the blocks between add to the text is added too, as in cache-dit."""
    pipe, call = tiny_flux()
    double, single = pipe.transformer.transformer_blocks, pipe.transformer.single_transformer_blocks
    plain = Watched()
    plain.outputs("text after F", double[0], 0)
    plain.outputs("image after F", double[0], 1)
    plain.inputs("text before B", single[-1], "encoder_hidden_states")
    plain.inputs("image before B", single[-1], "hidden_states")
    config = ditaccel.DBCacheConfig(threshold=1e9, first_blocks=1, last_blocks=1, warmup=1)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, true_cfg_scale=1.0, num_inference_steps=4)
        calls = ditaccel.report(pipe).calls
    assert [c.action for c in calls] == ["compute", "forecast", "forecast", "forecast"]
    for stream in ("text", "image"):
        after = [each.double() for each in plain.seen[f"{stream} after F"]]
        before = [each.double() for each in plain.seen[f"{stream} before B"]]
        for step in range(4):
            expected = after[step] + (before[0] - after[0])
            assert torch.allclose(before[step], expected, rtol=1e-4, atol=1e-5), stream


@pytest.mark.parametrize("name", ["flux", "sd3", "hunyuan_video", "latte", "wan_vace", "ltx2"])
def test_last_blocks_change_nothing_where_nothing_is_skipped(name):
    pipe, call = FAMILIES[name]()
    dense, clean = generate(pipe, call), traces(pipe)
    config = ditaccel.DBCacheConfig(threshold=0, first_blocks=1, last_blocks=1, warmup=1)
    unchanged(pipe, call, dense, clean, config)


def test_branches_have_counts_of_their_own():
    pipe, call = tiny_wan()
    config = ditaccel.DBCacheConfig(threshold=1e9, first_blocks=1, warmup=1, max_cached=3)
    with ditaccel.accelerated(pipe, cache=config):
        for _ in range(2):
            generate(pipe, call)
            calls = ditaccel.report(pipe).last_generation().calls
            for branch in ("cond", "uncond"):
                actions = [c.action for c in calls if c.branch == branch]
                assert actions == ["compute", *["forecast"] * 3, *["compute"] * 4]


def test_more_blocks_than_there_are_is_refused_in_one_line():
    pipe, _ = tiny_wan(layers=3)
    config = ditaccel.DBCacheConfig(first_blocks=2, last_blocks=1)
    with pytest.raises(
        ditaccel.UnsupportedError, match=r"first 2 blocks .* and the last 1 behind .* 3 in all"
    ):
        ditaccel.accelerate(pipe, cache=config)
    with pytest.raises(ditaccel.ConfigError, match="'independent' or 'follow'"):
        ditaccel.DBCacheConfig(guidance="difference")
