"""The step mask is followed, and checked against the run."""

import pytest
from inspection import computed
from tiny import generate, tiny_flux

import ditaccel


def test_step_mask_is_followed_and_checked():
    pipe, call = tiny_flux()
    config = ditaccel.StepMaskConfig(steps=(0, 1, 4, 7), total=8)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call)
        assert computed(pipe, "cond") == [0, 1, 4, 7]
        skipped = [c for c in ditaccel.report(pipe).calls if c.action == "forecast"]
        assert {c.blocks_run for c in skipped} == {0}
        with pytest.raises(ditaccel.ConfigError, match="made for 8 steps, this run has 6"):
            generate(pipe, call, num_inference_steps=6)
