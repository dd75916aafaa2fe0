"""The adaptive forecast: its gaps follow the tolerance and the rule of the step size."""

from dataclasses import replace

import pytest
import torch
from inspection import computed
from tiny import generate, tiny_wan

import ditaccel
from ditaccel.core.denoising.schedule import Schedule
from ditaccel.core.denoising.tracker import DenoisingStep
from ditaccel.errors import ConfigError


def test_adaptive_gap_follows_the_tolerance():
    pipe, call = tiny_wan()
    counts = []
    for tolerance in (0.0, 0.005, 0.02, 1e9):
        config = ditaccel.AdaptiveTaylorConfig(tolerance=tolerance)
        with ditaccel.accelerated(pipe, cache=config):
            generate(pipe, call, num_inference_steps=30)
            counts.append(len(computed(pipe, "cond")))
    assert counts[0] == 30
    assert counts == sorted(counts, reverse=True) and counts[-1] < counts[1]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("error", "growth"), [(0.001, 2.0), (0.02, 1.0), (0.5, 0.5)])
def test_step_size_rule(order, error, growth):
    """gap = 0.9 length (tolerance / error)^(1 / (order + 2)), half more at most, worst sample."""
    from ditaccel.caching.adaptive_taylor import StepSizeGate
    from ditaccel.caching.engine.correction import left_in_latents
    from ditaccel.caching.engine.gaps import GapEnd

    gate = StepSizeGate(tolerance=0.02, order=order, max_interval=50)
    state = ditaccel.AdaptiveTaylorConfig(order=order, warmup=4).policy().branch_state()
    state.samples = [torch.full((2, 4, 3), 2.0)]
    state.shapes = [torch.Size((2, 4, 3))]
    left = torch.zeros(2, 8, 3)  # four channels of latents, four of learned variance
    left[1, :4] = error * 2.0 * 3.0  # by the sample's size and the latents' scale
    left[:, 4:] = 1e6
    end = GapEnd(left, -0.1, 10, False)
    gate.gap_ended(state, end, left_in_latents(state, end, share=1 / 3))
    ideal = 0.9 * 10 * (0.02 / error) ** (1 / (order + 2))
    assert state.memory.error == pytest.approx(error, rel=1e-4)
    assert state.memory.gap == int(min(max(ideal, 1), 15))


def test_heun_forecasts_whole_steps():
    """Both stages of a step are computed, or none; only the last step has a single one."""
    from diffusers import FlowMatchHeunDiscreteScheduler

    pipe, call = tiny_wan(scheduler=FlowMatchHeunDiscreteScheduler(shift=3.0))
    with ditaccel.accelerated(pipe, "adaptive_taylor:tolerance=1e9,warmup=4"):
        generate(pipe, call, num_inference_steps=16)
        seen, report = set(computed(pipe, "cond")), ditaccel.report(pipe)
    assert report.correction == "on" and 4 < len(seen) < 25
    assert {i for i in seen if i % 2} == {i + 1 for i in seen if i % 2 == 0 and i < 30}


def test_multistep_schedulers_compute_the_last_step_but_one():
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    for made, guarded in ((scheduler, True), (None, False)):
        pipe, call = tiny_wan() if made is None else tiny_wan(scheduler=made)
        spec = "adaptive_taylor:tolerance=1e9,warmup=4,final=1,max_interval=30"
        with ditaccel.accelerated(pipe, spec):
            generate(pipe, call, num_inference_steps=20)
            seen = computed(pipe, "cond")
        assert (18 in seen) == guarded and 19 in seen


def test_where_errors_cannot_be_measured_every_second_step_is_computed():
    pipe, call = tiny_wan(layers=2)
    transformer, embeds = pipe.transformer, call["prompt_embeds"]
    del pipe
    ditaccel.accelerate(transformer, "adaptive_taylor:warmup=3")
    x = torch.randn(1, 4, 2, 8, 8)
    with (
        torch.no_grad(),
        pytest.warns(UserWarning, match="no scheduler is in sight; every") as said,
    ):
        for i in range(12):
            transformer(x, torch.tensor([1000.0 - 80 * i]), embeds)
    assert sum("every second step" in str(w.message) for w in said) == 1
    assert computed(transformer, "call0") == [0, 1, 2, 4, 6, 8, 10]
    ditaccel.restore(transformer)
    with ditaccel.accelerated(transformer, "adaptive_taylor:warmup=3,tolerance=0"), torch.no_grad():
        for i in range(8):
            transformer(x, torch.tensor([1000.0 - 80 * i]), embeds)
        assert computed(transformer, "call0") == list(range(8))


def test_forecasts_run_along_the_logarithm_of_picture_by_noise_where_it_is_known():
    step = DenoisingStep(0, 2, "cond", 500.0, sigma=0.5)
    known = replace(
        step, schedule=Schedule(sigmas=(1.0, 0.75, 0.5, 0.0), values=(1000, 750, 500), offset=0)
    )
    auto = ditaccel.AdaptiveTaylorConfig().policy().branch_state()
    assert auto.coordinate == "auto"
    assert auto.place(known) == pytest.approx(0.0) and auto.place(step) == 2
    named = ditaccel.AdaptiveTaylorConfig(coordinate="log_snr").policy().branch_state()
    assert named.place(known) == pytest.approx(0.0)
    with pytest.raises(ConfigError, match="coordinate='auto' or 'index'"):
        named.place(step)


def test_a_pipeline_takes_other_forecasts_along_another_coordinate():
    pipe, call = tiny_wan()
    outputs = {}
    for coordinate in ("index", "log_snr", "auto"):
        config = ditaccel.StepMaskConfig(steps=(0, 1, 4, 8, 11), coordinate=coordinate)
        with ditaccel.accelerated(pipe, cache=config):
            outputs[coordinate] = generate(pipe, call, num_inference_steps=12)
    assert torch.equal(outputs["log_snr"], outputs["auto"])
    assert not torch.equal(outputs["index"], outputs["auto"])
