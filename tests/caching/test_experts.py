"""Both experts of Wan 2.2 in one plan: what happens at the switch from one to the other."""

import pytest
import torch
from inspection import traces
from tiny import generate, tiny_wan22

import ditaccel
from ditaccel.core.reasons import Reason
from ditaccel.sessions.session import session_of

STEPS = {"num_inference_steps": 16}
SWITCH = 13  # of the tiny pipeline in 16 steps: its shift is large

METHODS = [
    ("taylorseer:interval=4,order={}", 0),
    ("taylorseer:interval=4,order={}", 1),
    ("taylorseer:interval=4,order={},granularity=last_block", 2),
    ("taylorseer:interval=4,order={},granularity=last_block,guidance=difference", 1),
    ("confidence_gated_taylor:threshold=1e9,order={},guidance=follow", 1),
    ("first_block_residual:threshold=1e9,order={}", 0),
    ("adaptive_taylor:tolerance=1e9,order={},guidance=difference", 1),
]


def causes(pipe, transformer, branch=None):
    calls = ditaccel.report(pipe).newest
    return {
        c.step: c.cause
        for c in calls
        if c.transformer == transformer and branch in (None, c.branch)
    }


def computed_of(pipe, transformer, branch):
    calls = ditaccel.report(pipe).newest
    return [
        c.step
        for c in calls
        if (c.transformer, c.branch, c.action) == (transformer, branch, "compute")
    ]


@pytest.mark.parametrize(("spec", "order"), METHODS)
def test_the_second_expert_begins_with_as_many_computed_steps_as_the_order_needs(spec, order):
    pipe, call = tiny_wan22(layers=2)
    with ditaccel.accelerated(pipe, spec.format(order)):
        generate(pipe, call, **STEPS)
        found = causes(pipe, "transformer_2")
        assert min(found) == SWITCH
        begun = [step for step, cause in found.items() if cause is Reason.FIRST_OF_EXPERT]
        assert begun == list(range(SWITCH, SWITCH + order + 1))
        for branch in ("cond", "uncond"):
            assert computed_of(pipe, "transformer_2", branch)[: order + 1] == begun
        text = str(ditaccel.report(pipe))
    assert "Computation by transformer: transformer " in text
    assert f"transformer_2 {100 if order > 1 else ''}" in text and "in 3 steps" in text


def test_the_last_step_before_the_switch_ends_the_gap():
    pipe, call = tiny_wan22(layers=2)
    with ditaccel.accelerated(pipe, "adaptive_taylor:tolerance=1e9,warmup=2,max_interval=3"):
        generate(pipe, call, **STEPS)
        found = causes(pipe, "transformer")
        assert found[SWITCH - 1] is Reason.LAST_OF_EXPERT
        assert Reason.WITHIN_GAP in found.values()
        # every gap was measured, so that a quality can be told
        assert ditaccel.report(pipe).left is not None


def test_memory_of_the_first_expert_is_freed_at_the_switch():
    pipe, call = tiny_wan22(layers=2)
    held = {}

    def watch(pipe, index, timestep, kwargs):
        caches = session_of({"transformer": pipe.transformer}).caches
        held[index] = {name: cache.nbytes for name, cache in caches.items()}
        return kwargs

    with ditaccel.accelerated(pipe, "taylorseer:interval=2,granularity=last_block"):
        generate(pipe, call, callback_on_step_end=watch, **STEPS)
    assert held[SWITCH - 1]["transformer"] > 0 and held[SWITCH - 1]["transformer_2"] == 0
    assert held[SWITCH]["transformer"] == 0 and held[SWITCH]["transformer_2"] > 0


def test_a_mask_is_followed_in_both_parts():
    pipe, call = tiny_wan22(layers=2)
    mask = "step_mask:steps=[0,1,5,9,12,13],order=1,guidance=difference,guidance_steps=[0,5,13]"
    with ditaccel.accelerated(pipe, mask):
        generate(pipe, call, **STEPS)
        assert computed_of(pipe, "transformer", "cond") == [0, 1, 5, 9, 12]
        assert computed_of(pipe, "transformer", "uncond") == [0, 5]
        assert computed_of(pipe, "transformer_2", "cond") == [13]
        assert computed_of(pipe, "transformer_2", "uncond") == [13]


@pytest.mark.parametrize("steps", [[0, 5, 9], [0, 12]])
def test_a_mask_that_leaves_an_expert_out_is_refused_before_anything_is_computed(steps):
    pipe, call = tiny_wan22(layers=2)
    dense = generate(pipe, call, **STEPS)
    clean = traces(pipe)
    with ditaccel.accelerated(pipe, cache=ditaccel.StepMaskConfig(steps=tuple(steps))):
        with pytest.raises(ditaccel.ConfigError, match="none of the steps 13 to 15, which another"):
            generate(pipe, call, **STEPS)
        assert ditaccel.report(pipe).total_calls == 0
    assert torch.equal(generate(pipe, call, **STEPS), dense) and traces(pipe) == clean


@pytest.mark.parametrize(
    "spec", ["adaptive_taylor:tolerance=0,guidance=difference", "reuse:interval=1"]
)
def test_scales_of_each_expert_change_nothing_of_exactness(spec):
    pipe, call = tiny_wan22(layers=2)
    scales = {"guidance_scale": 4.0, "guidance_scale_2": 2.0}
    dense = generate(pipe, call, **STEPS, **scales)
    assert not torch.equal(dense, generate(pipe, call, **STEPS, guidance_scale=4.0))
    with ditaccel.accelerated(pipe, spec):
        assert torch.equal(generate(pipe, call, **STEPS, **scales), dense)
