"""DiTFastAttn: a window and its residual, outputs that are shared, and plans that say which."""

from __future__ import annotations

import json

import pytest
import torch
from planners import context_of
from tiny import generate, peaked

import ditaccel
from ditaccel import ConfigError
from ditaccel.attention.ditfastattn import DiTFastAttnConfig
from ditaccel.attention.engine.attend import attend
from ditaccel.attention.engine.planner import Dense

LENGTH = 80
SMALL = {"q_tile": 16, "k_tile": 16, "min_tokens": 0, "dense_steps": 0, "break_even": 1.0}


def _tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 2, LENGTH, 8, generator=generator) for _ in range(3)]


def _attention(q, k, v, width=None):
    """In float64; of pairs of 16 x 16 tiles in a band, where a width is given."""
    scores = q.double() @ k.double().mT * 0.3
    if width is not None:
        tile = torch.arange(LENGTH) // 16
        scores = scores.masked_fill((tile[:, None] - tile).abs() * 16 > width, -torch.inf)
    return scores.softmax(-1) @ v.double()


def _run(planner, state, index, seed, branch="cond"):
    context = context_of(LENGTH, index)
    step = type(context.step)(0, index, branch, 500.0, sigma=0.5, total=10)
    context = type(context)(step, 1, 4, LENGTH)
    q, k, v = _tensors(seed)
    plan = planner.plan(q, k, v, 0.3, context, state)
    return plan, attend(plan, q, k, v, 0.3).output.double()


def _close(a, b):
    return float((a - b).norm() / b.norm()) < 3e-6


def test_a_window_step_adds_what_the_window_lacked_at_the_last_full_step():
    planner, state = DiTFastAttnConfig(window=16, interval=3, **SMALL).planner(), {}
    for index in range(5):
        plan, out = _run(planner, state, index, index)
        full = index in (0, 3)
        assert (plan.tile_map.density() == 1) == full and plan.blind == full
        if full:
            last = index
            expected = _attention(*_tensors(index))
        else:
            residual = _attention(*_tensors(last)) - _attention(*_tensors(last), 16)
            expected = _attention(*_tensors(index), 16) + residual
        assert _close(out, expected)
    # another branch has a residual of its own, and one that is too old is made again
    assert _run(planner, {}, 5, 5)[0].tile_map.density() == 1
    assert _run(planner, state, 15, 5)[0].tile_map.density() == 1


def _plan_file(path, words, method="ditfastattn"):
    path.write_text(
        json.dumps(
            {
                "format": 1,
                "method": method,
                "length": LENGTH,
                "words": {"": [words] * 4},
                "settings": {"window": 16},
            }
        )
    )
    return DiTFastAttnConfig(plan=path, window=16, **SMALL)


def test_a_plan_shares_outputs_between_steps_and_branches(tmp_path):
    config = _plan_file(tmp_path / "plan.json", list("FSWCBFFFFF"))
    planner, state = config.planner(), {}
    assert planner.shares_branches
    _, first = _run(planner, state, 0, 0)
    _, other = _run(planner, state, 0, 100, "uncond")
    plan, out = _run(planner, state, 1, 1)
    assert plan.tile_map.density() == 0 and torch.equal(out, first)
    assert torch.equal(_run(planner, state, 1, 101, "uncond")[1], other)
    residual = _attention(*_tensors(0)) - _attention(*_tensors(0), 16)
    assert _close(_run(planner, state, 2, 2)[1], _attention(*_tensors(2), 16) + residual)
    # C: the first branch computes its window, the second takes that output
    plan, out = _run(planner, state, 3, 3)
    assert 0 < plan.tile_map.density() < 1
    assert _close(out, _attention(*_tensors(3), 16) + residual)
    plan, shared = _run(planner, state, 3, 103, "uncond")
    assert plan.tile_map.density() == 0 and torch.equal(shared, out)
    # B: likewise in full
    plan, out = _run(planner, state, 4, 4)
    assert _close(out, _attention(*_tensors(4)))
    assert torch.equal(_run(planner, state, 4, 104, "uncond")[1], out)


def test_the_search_takes_the_cheapest_that_is_good_enough(tmp_path):
    path = tmp_path / "plan.json"
    config = DiTFastAttnConfig(save_plan=path, window=16, limit=0.001, **SMALL)
    planner, state = config.planner(), {}

    def seen(index, tensors):
        context = context_of(LENGTH, index, total=4)
        assert isinstance(planner.plan(*tensors, 0.3, context, state), Dense)

    q, k, v = _tensors(0)
    seen(0, (q, k, v))
    seen(1, (q, k, v))  # the same again: shared
    seen(2, (q, k, v + 1.0))  # all values move alike: the residual holds
    seen(3, _tensors(7))  # something else
    planner.end("")
    words = json.loads(path.read_text())["words"][""][1]
    assert words == ["F", "S", "W", "F"]


def test_in_a_pipeline_a_search_is_dense_and_its_plan_is_not(tmp_path):
    pipe, call = peaked("wan")
    call = {**call, "num_inference_steps": 4}
    dense = generate(pipe, call)
    options = {"window": 16, "limit": 0.5, **SMALL}
    path = tmp_path / "plan.json"
    with ditaccel.accelerated(pipe, attention=DiTFastAttnConfig(save_plan=path, **options)):
        assert torch.equal(generate(pipe, call), dense)
    with ditaccel.accelerated(pipe, attention=DiTFastAttnConfig(plan=path, **options)):
        first = generate(pipe, call)
        assert not torch.equal(first, dense) and torch.equal(generate(pipe, call), first)
        assert ditaccel.report(pipe).attention[0].density < 1
    assert torch.equal(generate(pipe, call), dense)


def test_bad_options_and_plans_are_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="below 1"):
        DiTFastAttnConfig(window=1.5)
    with pytest.raises(ConfigError, match="only one of them"):
        DiTFastAttnConfig(plan="a", save_plan="b")
    with pytest.raises(ConfigError, match="letters SCWBF"):
        _plan_file(tmp_path / "plan.json", ["F", "X"]).planner()
