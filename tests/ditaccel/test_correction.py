"""Gap correction: the latents end where exact outputs would have led."""

from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from tiny import generate, tiny_dit, tiny_wan

import ditaccel
from ditaccel.caching.correction import GapCorrector

X = torch.linspace(-1, 1, 12, dtype=torch.float32).reshape(1, 3, 4)


def integrate(schedule, outputs, computed, forecast):
    """Euler with forecasts; returns the latents with and without correction, and exact ones."""
    corrector = GapCorrector()
    exact, plain, corrected = (torch.zeros_like(X) for _ in range(3))
    for i, (sigma, following) in enumerate(pairwise(schedule)):
        width, true = following - sigma, outputs(float(i))
        exact = exact + width * true
        if i in computed:
            end = corrector.computed(float(i), width, true)
            extra = None if end is None else end.correction
            plain = plain + width * true
            corrected = corrected + width * (true if extra is None else true + extra)
        else:
            guess = forecast(i)
            corrector.forecast(float(i), width, guess)
            plain, corrected = plain + width * guess, corrected + width * guess
    return exact, plain, corrected


def test_any_forecast_error_is_taken_out_where_the_outputs_are_parabolas():
    schedule = [1.0, 0.97, 0.9, 0.8, 0.72, 0.6, 0.45, 0.4, 0.2, 0.1, 0.0]
    exact, plain, corrected = integrate(
        schedule, lambda t: X + 0.3 * X * t - 0.02 * t * t, {0, 1, 5, 9}, lambda i: 3 * X - i
    )
    assert (plain - exact).abs().max() > 0.1
    torch.testing.assert_close(corrected, exact, rtol=1e-5, atol=1e-5)


def test_no_gap_no_correction():
    corrector = GapCorrector()
    for i in range(5):
        end = corrector.computed(float(i), -0.1, X)
        assert end is None or end.correction is None


@pytest.mark.parametrize("guidance", ["independent", "follow", "difference"])
def test_computing_everything_stays_bit_exact(guidance):
    pipe, call = tiny_wan()
    dense = generate(pipe, call)
    spec = f"adaptive_taylor:tolerance=0,correction=always,guidance={guidance}"
    with ditaccel.accelerated(pipe, spec):
        assert torch.equal(generate(pipe, call), dense)


def test_scheduler_that_remembers_outputs_is_left_alone_or_refused():
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipe, call = tiny_wan(scheduler=scheduler)
    results = {}
    for correction in ("auto", "never"):
        with ditaccel.accelerated(pipe, f"adaptive_taylor:tolerance=1e9,correction={correction}"):
            results[correction] = generate(pipe, call)
    assert torch.equal(results["auto"], results["never"])
    with (
        ditaccel.accelerated(pipe, "adaptive_taylor:correction=always"),
        pytest.raises(ditaccel.ConfigError, match="needs a scheduler that adds its outputs up"),
    ):
        generate(pipe, call)


@pytest.mark.parametrize("guidance", ["independent", "difference"])
@pytest.mark.parametrize(
    "make_scheduler",
    [
        lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
        lambda: DDIMScheduler(clip_sample=False),
    ],
)
def test_pipeline_ends_where_exact_outputs_lead(make_scheduler, guidance):
    """A transformer whose output is a parabola in the step, whatever its input.

    The forecast (order 0) is wrong in every gap; only the correction can bring the latents home,
    and only if the tracker's sigmas are the scheduler's own.
    """
    pipe, call = tiny_dit(scheduler=make_scheduler())
    if isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler):
        pipe, call = tiny_wan(scheduler=make_scheduler())
    latents_only = {**call, "num_inference_steps": 12}
    ends = []
    pipe.scheduler.step = _recording(pipe.scheduler.step, ends)
    transformer = pipe.transformer
    count = {"calls": 0}
    per_step = 2 if "prompt_embeds" in call else 1

    def parabola(module, args, output):
        i = count["calls"] // per_step
        side = 1.0 + 0.5 * (count["calls"] % per_step)
        count["calls"] += 1
        return output * 0 + side * (0.5 + 0.05 * i - 0.004 * i * i)

    last = transformer.proj_out if per_step == 2 else transformer.proj_out_2
    computed_only = {"on": False}
    frozen: dict[int, torch.Tensor] = {}

    def wrong_when_forecast(module, args, output):
        value = parabola(module, args, output)
        side = (count["calls"] - 1) % per_step
        if computed_only["on"]:
            return value
        index = (count["calls"] - 1) // per_step
        if index in (0, 1, 4, 8, 11):
            frozen[side] = value
        return frozen[side]

    handle = last.register_forward_hook(wrong_when_forecast)
    computed_only["on"] = True
    generate(pipe, latents_only)
    exact = ends[-1]
    computed_only["on"], count["calls"] = False, 0
    errors = {}
    for correction in ("never", "always"):
        count["calls"] = 0
        spec = f"step_mask:steps=[0,1,4,8,11],correction={correction},guidance={guidance}"
        with ditaccel.accelerated(pipe, spec):
            generate(pipe, latents_only)
        errors[correction] = float((ends[-1] - exact).abs().max())
    handle.remove()
    assert errors["never"] > 1e-3
    assert errors["always"] < 5e-3 * errors["never"]


def _recording(step, ends):
    def wrapped(*args, **kwargs):
        result = step(*args, **kwargs)
        ends.append((result[0] if isinstance(result, tuple) else result.prev_sample).clone())
        return result

    return wrapped
