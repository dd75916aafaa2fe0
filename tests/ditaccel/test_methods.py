"""Which steps each method computes, exactly, and what it keeps, on tiny random pipelines."""

import pytest
import torch
from tiny import generate, tiny_dit, tiny_flux, tiny_wan, tiny_wan22

import ditaccel


def computed(pipe, branch=None):
    calls = ditaccel.report(pipe).last_generation().calls
    return [c.step for c in calls if c.action == "compute" and branch in (None, c.branch)]


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
    """The per-sample gate never skips where its worst sample is over the threshold."""
    pipe, call = tiny_dit()
    errors = {}
    for reduce in ("batch_mean", "worst_sample"):
        config = ditaccel.ConfidenceGatedTaylorConfig(threshold=1e-9, reduce=reduce)
        with ditaccel.accelerated(pipe, cache=config):
            generate(pipe, call)
            errors[reduce] = [c.error for c in ditaccel.report(pipe).calls[3:-1]]
    for mean, worst in zip(errors["batch_mean"], errors["worst_sample"], strict=True):
        assert worst > mean


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


def test_first_block_residual_reuses_the_tail():
    pipe, call = tiny_wan()
    config = ditaccel.FirstBlockResidualConfig(threshold=1e9)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call)
        assert computed(pipe, "cond") == [0]


def test_follow_gives_all_branches_the_first_ones_decision():
    pipe, call = tiny_wan()
    config = ditaccel.ConfidenceGatedTaylorConfig(threshold=0.05, guidance="follow")
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, num_inference_steps=16)
        assert computed(pipe, "cond") == computed(pipe, "uncond")
        assert 4 < len(computed(pipe, "cond")) < 16


def test_difference_computes_the_others_less_often():
    pipe, call = tiny_wan()
    config = ditaccel.AdaptiveTaylorConfig(
        tolerance=1e9, max_interval=2, guidance="difference", guidance_interval=2
    )
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, num_inference_steps=16)
        cond, uncond = computed(pipe, "cond"), computed(pipe, "uncond")
        assert cond == [0, 1, 2, 4, 6, 8, 10, 12, 14, 15]
        assert uncond == [0, 1, 2, 6, 10, 14, 15]


def test_difference_is_exact_where_branches_differ_by_a_line():
    """Same prompt on both sides: the difference is zero, so the other branch is never wrong."""
    pipe, call = tiny_wan()
    same = {**call, "negative_prompt_embeds": call["prompt_embeds"]}
    dense = generate(pipe, same)
    config = ditaccel.StepMaskConfig(
        steps=tuple(range(8)), guidance="difference", guidance_interval=4, order=0
    )
    with ditaccel.accelerated(pipe, cache=config):
        result = generate(pipe, same)
        assert len(computed(pipe, "uncond")) < 8
    torch.testing.assert_close(result, dense, rtol=1e-5, atol=1e-5)


def test_adaptive_gap_follows_the_tolerance():
    pipe, call = tiny_wan()
    counts = []
    for tolerance in (0.0, 0.02, 0.2, 1e9):
        config = ditaccel.AdaptiveTaylorConfig(tolerance=tolerance)
        with ditaccel.accelerated(pipe, cache=config):
            generate(pipe, call, num_inference_steps=30)
            counts.append(len(computed(pipe, "cond")))
    assert counts[0] == 30
    assert counts == sorted(counts, reverse=True) and counts[-1] < counts[1]


def test_cache_bytes_are_the_documented_number_of_hidden_states():
    pipe, call = tiny_wan()
    hidden = 2 * 4 * 4 // 4 * 24 * 4  # tokens x channels x bytes: 2 latent frames of 4x4, patch 2
    config = ditaccel.ConfidenceGatedTaylorConfig(threshold=0, order=2, block_order=3)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call)
        report = ditaccel.report(pipe)
        assert report.tensors_per_branch == 2 + 3 + 2
        assert report.cache_bytes == 2 * report.tensors_per_branch * hidden
    with ditaccel.accelerated(pipe, cache=ditaccel.TaylorSeerConfig(order=1, interval=1)):
        generate(pipe, call)
        report = ditaccel.report(pipe)
        assert report.tensors_per_branch == 4 * 3 * 2
        assert report.cache_bytes == 2 * report.tensors_per_branch * hidden


def test_budget_refuses_or_downgrades_before_memory_is_taken():
    pipe, call = tiny_wan()
    refuse = ditaccel.TaylorSeerConfig(memory_budget=10_000)
    with (
        ditaccel.accelerated(pipe, cache=refuse),
        pytest.raises(
            ditaccel.ConfigError,
            match=r"36.9 kB .* budget of 10 kB; granularity='last_b",
        ),
    ):
        generate(pipe, call)
    down = ditaccel.TaylorSeerConfig(memory_budget=10_000, on_budget="downgrade", interval=2)
    with ditaccel.accelerated(pipe, cache=down):
        with pytest.warns(UserWarning, match="going on with granularity='last_block', order=1"):
            generate(pipe, call)
        assert 0 < ditaccel.report(pipe).cache_bytes <= 10_000
        assert computed(pipe, "cond") == [0, 2, 4, 6]
    hopeless = ditaccel.TaylorSeerConfig(memory_budget=10, on_budget="downgrade")
    with (
        ditaccel.accelerated(pipe, cache=hopeless),
        pytest.raises(ditaccel.ConfigError, match="raise memory_budget"),
    ):
        generate(pipe, call)


def test_second_transformer_starts_with_a_history_of_its_own():
    pipe, call = tiny_wan22()
    with ditaccel.accelerated(pipe, cache=ditaccel.TaylorSeerConfig(interval=3)):
        generate(pipe, call)
        calls = ditaccel.report(pipe).calls
        second = [c for c in calls if c.transformer == "transformer_2" and c.branch == "cond"]
        assert second[0].step > 0 and second[0].action == "compute"
        assert {c.step for c in calls} == set(range(12))


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
