"""FORA: which steps are computed, counted from the end, and what is reused in between."""

import pytest
import torch
from inspection import Watched, computed
from tiny import generate, tiny_dit, tiny_wan

import ditaccel


@pytest.mark.parametrize(
    ("interval", "steps", "expected"),
    [
        (1, 4, [0, 1, 2, 3]),
        (2, 7, [0, 2, 4, 6]),
        (2, 8, [0, 1, 3, 5, 7]),
        (3, 8, [0, 1, 4, 7]),
        (4, 10, [0, 1, 5, 9]),
        (9, 5, [0, 4]),
    ],
)
def test_steps_are_counted_back_from_the_last_one(interval, steps, expected):
    pipe, call = tiny_dit()
    with ditaccel.accelerated(pipe, cache=ditaccel.FORAConfig(interval=interval)):
        generate(pipe, call, num_inference_steps=steps)
        assert computed(pipe) == expected


def test_attention_and_mlp_give_what_they_gave_on_the_last_computed_step():
    """What a block adds, taken apart from the outside in float64."""
    pipe, call = tiny_wan()
    block = pipe.transformer.blocks[1]
    plain = Watched()
    plain.inputs("before", block.norm2, "x")
    plain.inputs("between", block.norm3, "x")
    plain.outputs("block", block)
    plain.outputs("cross", block.attn2)
    plain.outputs("mlp", block.ffn)
    gates = []
    block.register_forward_pre_hook(
        lambda module, args: gates.append((module.scale_shift_table + args[2])[:, 5:6])
    )
    with ditaccel.accelerated(pipe, cache=ditaccel.FORAConfig(interval=3)):
        generate(pipe, call, guidance_scale=1.0, num_inference_steps=8)
        assert computed(pipe) == [0, 1, 4, 7]
    seen = plain.seen
    assert len(seen["cross"]) == len(seen["mlp"]) == 4 and len(seen["block"]) == 8
    source = [0, 1, 1, 1, 2, 2, 2, 3]  # number of the last computed step
    for step in range(8):
        before, cross = seen["before"][step].double(), seen["cross"][source[step]].double()
        assert close(seen["between"][step], before + cross)
        # the gate of the MLP is this step's own
        mlp = seen["mlp"][source[step]].double() * gates[step].double()
        assert close(seen["block"][step], before + cross + mlp)


def close(found, expected):
    return torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_branch_that_guidance_left_out_is_computed_when_it_comes_back():
    pipe, call = tiny_wan()

    def pause(pipe, index, timestep, tensors):
        pipe._guidance_scale = 1.0 if 1 <= index < 7 else 4.0
        return tensors

    with ditaccel.accelerated(pipe, cache=ditaccel.FORAConfig(interval=4)):
        generate(pipe, call, num_inference_steps=12, callback_on_step_end=pause)
        assert computed(pipe, "cond") == [0, 3, 7, 11]
        assert computed(pipe, "uncond") == [0, 8, 11]


def test_an_interval_below_one_is_refused():
    with pytest.raises(ditaccel.ConfigError, match="interval is 0; it must be 1 or more"):
        ditaccel.FORAConfig(interval=0)
