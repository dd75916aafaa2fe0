"""Which steps each method computes, exactly, and what it keeps, on tiny random pipelines."""

import pytest
import torch
from tiny import generate, tiny_dit, tiny_flux, tiny_wan, tiny_wan22

import ditaccel
from ditaccel.caching.blocks import placeholder
from ditaccel.core.outputs import all_finite


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
        tolerance=1e9, max_interval=2, warmup=3, guidance="difference", guidance_interval=2
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
            match=r"at least 10.8 kB .* budget of 10 kB; granularity='last_b",
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
        lines = ditaccel.report(pipe).warnings
    assert len([line for line in lines if "produced non-finite" in line]) == 1  # not at each step
    assert not [line for line in lines if "raise the threshold" in line]  # that would not help


def test_difference_is_the_first_branch_plus_the_forecast_difference():
    """Recompute from the outside what the other branch hands to the final layer."""
    pipe, call = tiny_wan()
    seen = []
    pipe.transformer.norm_out.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].clone())
    )
    config = ditaccel.StepMaskConfig(
        steps=(0, 1, 2, 5),
        guidance="difference",
        guidance_steps=(0, 1),
        correction="never",
        target="hidden",
    )
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, num_inference_steps=6)
        assert computed(pipe, "uncond") == [0, 1]
    cond, uncond = seen[0::2], seen[1::2]
    difference = [u - c for c, u in zip(cond[:2], uncond[:2], strict=True)]
    for step in (2, 3, 5):
        expected = cond[step] + difference[1] + (step - 1) * (difference[1] - difference[0])
        torch.testing.assert_close(uncond[step], expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(uncond[step], cond[step])


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


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("error", "growth"), [(0.001, 2.0), (0.02, 1.0), (0.5, 0.5)])
def test_step_size_rule(order, error, growth):
    """gap = 0.9 length (tolerance / error)^(1 / (order + 2)), half more at most, worst sample."""
    from ditaccel.caching.adaptive_taylor import StepSizeGate
    from ditaccel.caching.correction import left_in_latents
    from ditaccel.caching.gaps import GapEnd
    from ditaccel.core.denoising.tracker import DenoisingStep

    gate = StepSizeGate(tolerance=0.02, order=order, max_interval=50)
    state = ditaccel.AdaptiveTaylorConfig(order=order, warmup=4).policy().branch_state()
    state.samples = [torch.full((2, 4, 3), 2.0)]
    state.shapes = [torch.Size((2, 4, 3))]
    left = torch.zeros(2, 8, 3)  # four channels of latents, four of learned variance
    left[1, :4] = error * 2.0 * 3.0  # by the sample's size and the latents' scale
    left[:, 4:] = 1e6
    step = DenoisingStep(0, 20, "cond", 500.0, latent_scale=3.0)
    end = GapEnd(left, -0.1, 10, False)
    gate.gap_ended(state, end, left_in_latents(step, state, end))
    ideal = 0.9 * 10 * (0.02 / error) ** (1 / (order + 2))
    assert state.memory.error == pytest.approx(error, rel=1e-4)
    assert state.memory.gap == int(min(max(ideal, 1), 15))


def test_adaptive_refuses_schedulers_that_step_in_stages():
    from diffusers import FlowMatchHeunDiscreteScheduler

    pipe, call = tiny_wan(scheduler=FlowMatchHeunDiscreteScheduler())
    with (
        ditaccel.accelerated(pipe, cache=ditaccel.AdaptiveTaylorConfig(coordinate="timestep")),
        pytest.raises(ditaccel.ConfigError, match=r"in stages \(Heun\)"),
    ):
        generate(pipe, call)


def test_downgraded_order_still_forecasts():
    pipe, call = tiny_wan()
    config = ditaccel.AdaptiveTaylorConfig(tolerance=1e9, memory_budget=4700, on_budget="downgrade")
    with ditaccel.accelerated(pipe, cache=config):
        with pytest.warns(UserWarning, match="order=0"):
            generate(pipe, call, num_inference_steps=12)
        assert ditaccel.report(pipe).forecasts > 0


def test_budget_counts_what_the_basis_keeps():
    pipe, call = tiny_wan()
    config = ditaccel.StepMaskConfig(steps=tuple(range(8)), basis="exponential", target="hidden")
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call)
        report = ditaccel.report(pipe)
        assert report.tensors_per_branch == 3 and report.cache_bytes == 2 * 3 * 768


def test_report_says_what_became_of_the_correction():
    from diffusers import UniPCMultistepScheduler

    pipe, call = tiny_wan()
    with ditaccel.accelerated(pipe, cache=ditaccel.AdaptiveTaylorConfig()):
        generate(pipe, call)
        assert "Gap correction: on." in str(ditaccel.report(pipe))
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipe, call = tiny_wan(scheduler=scheduler)
    with ditaccel.accelerated(pipe, cache=ditaccel.AdaptiveTaylorConfig()):
        generate(pipe, call)
        assert "Gap correction: off: this scheduler" in str(ditaccel.report(pipe))


def test_non_finite_features_are_said_by_methods_without_a_gate():
    pipe, call = tiny_wan()
    with torch.no_grad():
        pipe.transformer.blocks[0].ffn.net[2].weight[0, 0] = float("nan")
    with (
        ditaccel.accelerated(pipe, cache=ditaccel.TaylorSeerConfig()),
        pytest.warns(UserWarning, match="non-finite features in generation 0"),
    ):
        generate(pipe, call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("broken", ["nan", "inf", "-inf"])
def test_one_broken_value_is_enough(dtype, broken):
    values = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)
    values[0] *= -1
    assert all_finite(values)
    values[1, 2] = float(broken)
    assert not all_finite(values)


def test_a_placeholder_is_made_once():
    one, two = torch.zeros(2, 3), torch.zeros(4, dtype=torch.bfloat16)
    first = placeholder((one, two))
    assert [(p.shape, p.dtype) for p in first] == [(t.shape, t.dtype) for t in (one, two)]
    again = placeholder((one, two), first)
    assert again[0] is first[0] and again[1] is first[1]
    other = placeholder((torch.zeros(5), two), first)  # the next batch is of another size
    assert other[0].shape == (5,) and other[1] is first[1]
    assert placeholder(one, first).shape == one.shape
