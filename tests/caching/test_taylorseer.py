"""TaylorSeer: which steps are computed, exactly, and with which history."""

import pytest
import torch
from inspection import computed
from tiny import generate, tiny_dit, tiny_wan, tiny_wan22

import ditaccel


@pytest.mark.parametrize("granularity", ["module", "last_block"])
@pytest.mark.parametrize(
    ("interval", "warmup", "steps", "expected"),
    [
        (1, 1, 6, [0, 1, 2, 3, 4, 5]),
        (3, 1, 8, [0, 3, 6]),
        (4, 2, 12, [0, 1, 5, 9]),
        (5, 3, 14, [0, 1, 2, 7, 12]),
    ],
)
def test_taylorseer_schedule_as_published(granularity, interval, warmup, steps, expected):
    pipe, call = tiny_dit()
    config = ditaccel.TaylorSeerConfig(interval=interval, warmup=warmup, granularity=granularity)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, num_inference_steps=steps)
        assert computed(pipe) == expected


def test_second_transformer_starts_with_a_history_of_its_own():
    pipe, call = tiny_wan22()
    with ditaccel.accelerated(pipe, cache=ditaccel.TaylorSeerConfig(interval=3)):
        generate(pipe, call)
        calls = ditaccel.report(pipe).calls
        second = [c for c in calls if c.transformer == "transformer_2" and c.branch == "cond"]
        assert second[0].step > 0 and second[0].action == "compute"
        assert {c.step for c in calls} == set(range(12))


def test_interval_counts_steps_not_the_branchs_calls():
    """A branch that guidance left out for a while is computed when it comes back."""
    pipe, call = tiny_wan()

    def pause(pipe, index, timestep, tensors):
        pipe._guidance_scale = 1.0 if 1 <= index < 9 else 4.0
        return tensors

    config = ditaccel.TaylorSeerConfig(interval=4, granularity="last_block")
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, num_inference_steps=14, callback_on_step_end=pause)
        assert computed(pipe, "cond") == [0, 4, 8, 12]
        assert computed(pipe, "uncond") == [0, 10]


def test_non_finite_features_are_said_by_methods_without_a_gate():
    pipe, call = tiny_wan()
    with torch.no_grad():
        pipe.transformer.blocks[0].ffn.net[2].weight[0, 0] = float("nan")
    with (
        ditaccel.accelerated(pipe, cache=ditaccel.TaylorSeerConfig()),
        pytest.warns(UserWarning, match="non-finite features in generation 0"),
    ):
        generate(pipe, call)
