"""Loops of few steps: a mask in place of error control, and what it gains is said before."""

import pytest
import torch
from inspection import computed
from tiny import generate, tiny_flux

import ditaccel
from ditaccel import ConfigError
from ditaccel.caching.engine.few_steps import skipped_of_few
from ditaccel.caching.engine.policy import computed_steps, few_steps_line


@pytest.mark.parametrize(
    ("total", "most", "skipped"),
    [
        (4, 3, (3,)),
        (5, 2, (4,)),
        (6, 3, (5, 3)),
        (8, 2, (7, 5)),
        (9, 3, (8, 6, 4)),
        (12, 3, (11, 9, 7)),
        *((3, 3, ()), (13, 3, ()), (None, 3, ()), (8, 0, ())),
    ],
)
def test_the_last_step_and_every_second_before_it_are_skipped(total, most, skipped):
    assert skipped_of_few(total, most) == skipped


def test_presets_skip_by_mask_in_few_steps_and_reuse():
    pipe, call = tiny_flux()
    mask = ditaccel.StepMaskConfig(steps=(0, 1, 2, 3, 4, 6), total=8, order=0)
    with ditaccel.accelerated(pipe, mask):
        expected = generate(pipe, call, num_inference_steps=8)
    with ditaccel.accelerated(pipe, "balanced"):
        found = generate(pipe, call, num_inference_steps=8)
        assert computed(pipe, "cond") == [0, 1, 2, 3, 4, 6]
        told = str(ditaccel.report(pipe))
        assert "2 of them (5, 7) are skipped" in told and "at most 1.33x" in told
        # a longer loop afterwards is under error control again
        generate(pipe, call, num_inference_steps=14)
        assert computed(pipe, "cond")[-1] == 13
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_safe_is_dense_in_few_steps_and_says_so():
    pipe, call = tiny_flux()
    dense = generate(pipe, call, num_inference_steps=4)
    with ditaccel.accelerated(pipe, "safe"), pytest.warns(UserWarning, match="4 steps are too few"):
        assert torch.equal(generate(pipe, call, num_inference_steps=4), dense)


def test_error_control_stays_where_it_is_asked_for():
    made = ditaccel.AdaptiveTaylorConfig(tolerance=0.5).policy()
    assert made.in_loop(8) is made and computed_steps(made, 8) is None
    few = ditaccel.AdaptiveTaylorConfig(tolerance=0.5, few=2).policy()
    assert few.in_loop(20) is few and few.in_loop(None) is few
    assert computed_steps(few.in_loop(6), 6) == (0, 1, 2, 4)
    assert few_steps_line(few, 20) == "" == few_steps_line(made, 8)
    with pytest.raises(ConfigError, match="few is -1"):
        ditaccel.AdaptiveTaylorConfig(few=-1)


def test_doctor_says_before_a_run_what_few_steps_gain():
    pipe, _ = tiny_flux()
    found = ditaccel.doctor(pipe, steps=8)
    assert any("balanced: 8 steps are few" in line for line in found.few_steps)
    assert any(line.startswith("safe: dense") for line in found.few_steps)
    assert "at most 1.60x" in str(found)
    assert ditaccel.doctor(pipe, call={"num_inference_steps": 4}).few_steps
    assert ditaccel.doctor(pipe, steps=20).few_steps == []
