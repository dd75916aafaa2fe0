"""The confidence-gated forecast: which steps are computed, and the error that decides."""

import pytest
import torch
from inspection import computed
from tiny import generate, tiny_dit, tiny_wan

import ditaccel


def test_confidence_gate_computes_warmup_and_last_and_skips_between():
    pipe, call = tiny_wan()
    config = ditaccel.ConfidenceGatedTaylorConfig(threshold=1e9, warmup=3)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call)
        assert computed(pipe, "cond") == [0, 1, 2, 7] == computed(pipe, "uncond")
        skipped = [c for c in ditaccel.report(pipe).calls if c.action == "forecast"]
        assert {c.blocks_run for c in skipped} == {1}  # the first block always runs
        assert all(c.error is not None and c.error > 0 for c in skipped)


def test_confidence_gate_compares_the_first_blocks_forecast():
    """Recompute the published error from the outside and hold the report against it."""
    pipe, call = tiny_dit()
    outputs = []
    pipe.transformer.transformer_blocks[0].register_forward_hook(
        lambda module, args, output: outputs.append(output.clone())
    )
    config = ditaccel.ConfidenceGatedTaylorConfig(threshold=1e-9, block_order=1, warmup=3)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call)
        calls = ditaccel.report(pipe).calls
    for c in calls[3:7]:
        actual = outputs[c.step]
        forecast = 2 * outputs[c.step - 1] - outputs[c.step - 2]
        expected = (forecast - actual).abs().mean() / actual.abs().mean()
        assert c.error == pytest.approx(float(expected), rel=1e-4)


def test_histories_are_fed_on_computed_steps_only():
    """With everything skipped after warm-up, the last forecast is the line through the warm-up."""
    pipe, call = tiny_wan()
    seen = []
    pipe.transformer.norm_out.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].clone())
    )
    with ditaccel.accelerated(
        pipe, cache=ditaccel.ConfidenceGatedTaylorConfig(threshold=1e9, warmup=2)
    ):
        generate(pipe, call, guidance_scale=1.0, num_inference_steps=6)
    torch.testing.assert_close(seen[4], seen[1] + 3 * (seen[1] - seen[0]), rtol=1e-4, atol=1e-5)


def test_max_consecutive_bounds_the_run():
    pipe, call = tiny_wan()
    config = ditaccel.ConfidenceGatedTaylorConfig(threshold=1e9, warmup=2, max_consecutive=2)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call)
        assert computed(pipe, "cond") == [0, 1, 4, 7]


def test_worst_sample_decides_for_the_batch():
    """Between the mean and the worst error, the mean forecasts and the worst sample computes."""
    pipe, call = tiny_dit()
    errors = {}
    for reduce in ("batch_mean", "worst_sample"):
        config = ditaccel.ConfidenceGatedTaylorConfig(threshold=1e-9, reduce=reduce)
        with ditaccel.accelerated(pipe, cache=config):
            generate(pipe, call)
            errors[reduce] = ditaccel.report(pipe).calls[3].error
    between = (errors["batch_mean"] + errors["worst_sample"]) / 2
    assert errors["batch_mean"] < between < errors["worst_sample"]
    for reduce, action in (("batch_mean", "forecast"), ("worst_sample", "compute")):
        config = ditaccel.ConfidenceGatedTaylorConfig(threshold=between, reduce=reduce)
        with ditaccel.accelerated(pipe, cache=config):
            generate(pipe, call)
            assert ditaccel.report(pipe).calls[3].action == action


def test_too_few_steps_are_said():
    pipe, call = tiny_wan()
    config = ditaccel.ConfidenceGatedTaylorConfig(warmup=5)
    with (
        ditaccel.accelerated(pipe, cache=config),
        pytest.warns(UserWarning, match="6 steps are too few for confidence_gated_taylor"),
    ):
        generate(pipe, call, num_inference_steps=6)


def test_non_finite_features_are_said_and_computed():
    pipe, call = tiny_wan()
    with torch.no_grad():
        pipe.transformer.blocks[0].ffn.net[2].weight[0, 0] = float("nan")
    config = ditaccel.ConfidenceGatedTaylorConfig(threshold=1e9)
    with (
        ditaccel.accelerated(pipe, cache=config),
        pytest.warns(UserWarning, match="non-finite features at step 3"),
    ):
        generate(pipe, call)
        lines = ditaccel.report(pipe).warnings
    assert len([line for line in lines if "produced non-finite" in line]) == 1  # not at each step
    assert not [line for line in lines if "raise the threshold" in line]  # that would not help
