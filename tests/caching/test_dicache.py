"""DiCache: the probe decides, and the residual is aligned, by the rule worked out in float64."""

import numpy as np
import pytest
import torch
from inspection import Watched, computed, on
from tiny import generate, tiny_wan

import ditaccel
from ditaccel.caching.dicache import ProbeGate
from ditaccel.caching.engine.gate import StepRules

STEPS = 12


def watched(pipe, blocks):
    """What goes into the first block, comes out of the probe and goes to the last norm."""
    plain = Watched()
    plain.inputs("entered", pipe.transformer.blocks[0], "hidden_states")
    plain.outputs("probe", pipe.transformer.blocks[blocks - 1])
    plain.inputs("end", pipe.transformer.norm_out, "x")
    return plain


def run(config, blocks=1):
    pipe, call = tiny_wan()
    plain = watched(pipe, blocks)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, guidance_scale=1.0, num_inference_steps=STEPS)
        calls = ditaccel.report(pipe).calls
    seen = {key: [each.double().numpy() for each in values] for key, values in plain.seen.items()}
    return seen, calls


def moved(now, before):
    return np.abs(now - before).mean() / np.abs(before).mean()


def by_the_rule(seen, threshold, retention, change):
    """Steps that are computed, and the sums of changes, from what was seen outside."""
    computed, sums, total = [], [], 0.0
    for step in range(STEPS):
        if step <= int(retention * STEPS) or step == STEPS - 1:
            computed.append(step)
            sums.append(None)
            total = 0.0
            continue
        error = moved(seen["probe"][step], seen["probe"][step - 1])
        if change == "difference":
            error = abs(error - moved(seen["entered"][step], seen["entered"][step - 1]))
        total += error
        sums.append(total)
        if total >= threshold:
            computed.append(step)
            total = 0.0
    return computed, sums


@pytest.mark.parametrize(
    ("threshold", "retention", "change", "blocks"),
    [(0.25, 0.2, "probe", 1), (0.35, 0.0, "probe", 2), (0.02, 0.1, "difference", 1)],
)
def test_changes_add_up_from_step_to_step(threshold, retention, change, blocks):
    config = ditaccel.DiCacheConfig(
        threshold=threshold, retention=retention, change=change, blocks=blocks
    )
    seen, calls = run(config, blocks)
    expected, sums = by_the_rule(seen, threshold, retention, change)
    assert [c.step for c in calls if c.action == "compute"] == expected
    assert int(retention * STEPS) + 2 < len(expected) < STEPS
    for call, total in zip(calls, sums, strict=True):
        assert (call.error is None) == (total is None)
        assert total is None or call.error == pytest.approx(total, rel=1e-4)
    assert {c.blocks_run for c in calls if c.action == "forecast"} == {blocks}


def test_the_residual_is_aligned_with_the_probe():
    seen, calls = run(ditaccel.DiCacheConfig(threshold=0.25, retention=0.1))
    entered, probe, end = (seen[key] for key in ("entered", "probe", "end"))
    past, along = [], []
    for step, call in enumerate(calls):
        if call.action == "compute":
            past.insert(0, (end[step] - entered[step], probe[step] - entered[step]))
            continue
        (r1, p1), (r2, p2) = past[:2]
        p = probe[step] - entered[step]
        along.append(np.clip(np.abs(p - p2).mean() / np.abs(p1 - p2).mean(), 1.0, 1.5))
        expected = entered[step] + r2 + along[-1] * (r1 - r2)
        np.testing.assert_allclose(end[step], expected, rtol=1e-4, atol=1e-5)
    assert len(along) > 3 and max(along) > 1.0


def test_one_residual_alone_is_reused():
    seen, calls = run(ditaccel.DiCacheConfig(threshold=1e9, retention=0.0))
    assert [c.action for c in calls] == ["compute", *["forecast"] * (STEPS - 2), "compute"]
    residual = seen["end"][0] - seen["entered"][0]
    for step in range(1, STEPS - 1):
        expected = seen["entered"][step] + residual
        np.testing.assert_allclose(seen["end"][step], expected, rtol=1e-4, atol=1e-5)


def test_branches_probe_for_themselves_and_generations_begin_anew():
    pipe, call = tiny_wan()
    with ditaccel.accelerated(pipe, cache=ditaccel.DiCacheConfig(threshold=0.3)):
        first = generate(pipe, call, num_inference_steps=STEPS)
        decided = [computed(pipe, branch) for branch in ("cond", "uncond")]
        assert torch.equal(generate(pipe, call, num_inference_steps=STEPS), first)
        assert [computed(pipe, branch) for branch in ("cond", "uncond")] == decided
    # the first branch alone decides as it does beside the other one, up to what guidance changes
    with ditaccel.accelerated(pipe, cache=ditaccel.DiCacheConfig(threshold=0.3)):
        generate(pipe, call, guidance_scale=1.0, num_inference_steps=STEPS)
        assert computed(pipe)[:3] == decided[0][:3] == [0, 1, 2]


def test_non_finite_changes_are_computed():
    gate = ProbeGate(1e9)
    pipe, call = tiny_wan()
    with torch.no_grad():
        pipe.transformer.blocks[0].ffn.net[2].weight[0, 0] = float("nan")
    config = on(gate, rules=StepRules(warmup=2), target="aligned_residual", order=1)
    with (
        ditaccel.accelerated(pipe, cache=config),
        pytest.warns(UserWarning, match="non-finite features at step 2"),
    ):
        generate(pipe, call, num_inference_steps=4)
        assert computed(pipe, "cond") == [0, 1, 2, 3]
