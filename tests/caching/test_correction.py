"""Gap correction: the latents end where exact outputs would have led."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from tiny import FAMILIES, generate, tiny_wan

import ditaccel
from ditaccel.caching.engine.forecast import History
from ditaccel.caching.engine.gaps import LONGEST_WITH_FEEDBACK, GapCorrector, GapEnd
from ditaccel.caching.engine.state import BranchState
from ditaccel.core.denoising.tracker import DenoisingTracker


class Pipe(SimpleNamespace):
    """Holds a scheduler, as pipelines do."""


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


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS = {
    "flow-euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "unipc-1": lambda: UniPCMultistepScheduler(**FLOW, solver_order=1),
    "unipc-2": lambda: UniPCMultistepScheduler(**FLOW),
    "unipc-3": lambda: UniPCMultistepScheduler(**FLOW, solver_order=3),
    "dpm-2": lambda: DPMSolverMultistepScheduler(**FLOW),
    "dpm-3": lambda: DPMSolverMultistepScheduler(**FLOW, solver_order=3),
    "edm": EDMEulerScheduler,
    "velocity": lambda: DDIMScheduler(
        clip_sample=False, prediction_type="v_prediction", timestep_spacing="linspace"
    ),
    "heun": lambda: FlowMatchHeunDiscreteScheduler(shift=3.0),
}


@pytest.mark.parametrize("coordinate", ["index", "auto"])
@pytest.mark.parametrize("which", SCHEDULERS)
def test_the_last_latents_are_those_of_exact_outputs_under_any_deterministic_scheduler(
    which, coordinate
):
    """Parabolas along the coordinate: whatever was forecast, every gap is known exactly."""
    ends, state = {}, BranchState(1, coordinate=coordinate)
    for mode in ("exact", "plain", "corrected"):
        scheduler = SCHEDULERS[which]()
        scheduler.set_timesteps(9 if which == "heun" else 17)
        pipe = Pipe(scheduler=scheduler)
        tracker, corrector = DenoisingTracker(pipe), GapCorrector()
        latents, count = X.double(), len(scheduler.timesteps)
        computed = {0, 1, 2, 3, 6, 7, 8, 9, 14, 15, count - 1}
        for i, t in enumerate(scheduler.timesteps):
            step = tracker.observe("transformer", t)
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(latents, t)
            place, weight = state.distinct_place(step), step.response.end(i)
            output = (X + 0.1 * X * place - 0.01 * place**2).double()
            if mode != "exact" and i not in computed:
                output = 2 * X.double() - 0.1 * i
                corrector.forecast(place, weight, output)
            elif mode == "corrected":
                end = corrector.computed(place, weight, output, step.feedback, index=i)
                if end is not None and end.correction is not None:
                    output = output + end.correction
            latents = scheduler.step(output, t, latents, return_dict=False)[0].double()
        ends[mode] = latents
    assert (ends["plain"] - ends["exact"]).norm() > 0.01 * ends["exact"].norm()
    assert (ends["corrected"] - ends["exact"]).norm() < 1e-5 * ends["exact"].norm()


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


def unipc(order=2):
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=order
    )


def test_noise_that_a_call_asks_for_is_noise():
    """`eta` of DDIM is an argument of the call: the scheduler itself tells nothing of it."""
    pipe, call = FAMILIES["pixart"]()
    pipe.scheduler = DDIMScheduler(clip_sample=False)
    call, spec = {**call, "num_inference_steps": 14}, "taylorseer:interval=3,granularity=last_block"
    found = []
    for eta in (0.0, 0.7, 0.0):
        with ditaccel.accelerated(pipe, f"{spec},correction=auto"):
            generate(pipe, {**call, "eta": eta})
            found.append(ditaccel.report(pipe).correction)
    assert found == ["on", "off: this scheduler draws noise in its steps", "on"]
    ditaccel.accelerate(pipe, f"{spec},correction=always")
    with pytest.raises(ditaccel.ConfigError, match="draws noise"):
        generate(pipe, {**call, "eta": 0.7})


def test_scheduler_that_draws_noise_is_left_alone_or_refused():
    pipe, call = tiny_wan(scheduler=FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))
    results = {}
    for correction in ("auto", "never"):
        with ditaccel.accelerated(pipe, f"adaptive_taylor:tolerance=1e9,correction={correction}"):
            torch.manual_seed(0)  # it asks nobody for a generator
            results[correction] = generate(pipe, call)
    assert torch.equal(results["auto"], results["never"])
    with (
        ditaccel.accelerated(pipe, "adaptive_taylor:correction=always"),
        pytest.raises(ditaccel.ConfigError, match="this scheduler draws noise in its steps; use"),
    ):
        generate(pipe, call)


@pytest.mark.parametrize("which", ["flow-euler", "unipc-2"])
@pytest.mark.parametrize("guidance", ["independent", "difference"])
def test_forecast_outputs_are_brought_home_too(guidance, which):
    """The same with target="output": a line misses the parabola, three nodes a gap hit it."""
    pipe, call = tiny_wan(scheduler=SCHEDULERS[which]())
    latents_only = {**call, "num_inference_steps": 12}
    ends = []
    pipe.scheduler.step = _recording(pipe.scheduler.step, ends)
    place = {}

    def parabola(module, args, output):
        i, side = place["step"], 1.0 + 0.5 * place["branch"]
        return output * 0 + side * (0.5 + 0.05 * i - 0.004 * i * i)

    pipe.transformer.proj_out.register_forward_hook(parabola)

    def counted(module, args, kwargs):
        seen = place.setdefault("times", [])
        time = float(kwargs["timestep"][0])
        place["branch"] = int(bool(seen) and seen[-1] == time)
        if not place["branch"]:
            seen.append(time)
        place["step"] = times.index(time)

    times = []
    watch = pipe.transformer.register_forward_pre_hook(
        lambda m, a, k: times.append(float(k["timestep"][0])), with_kwargs=True
    )
    place.update(step=0, branch=0)
    generate(pipe, latents_only)
    watch.remove()
    times = times[::2]
    pipe.transformer.register_forward_pre_hook(counted, with_kwargs=True)
    place.clear()
    generate(pipe, latents_only)
    exact, errors = ends[-1], {}
    for correction in ("never", "always"):
        place.clear()
        spec = f"step_mask:steps=[0,1,2,5,8,11],correction={correction},guidance={guidance}"
        with ditaccel.accelerated(pipe, spec):
            generate(pipe, latents_only)
        errors[correction] = float((ends[-1] - exact).abs().max())
    assert errors["never"] > 1e-3
    assert errors["always"] < 5e-3 * errors["never"]


@pytest.mark.parametrize("guidance", ["independent", "difference"])
def test_pipeline_ends_where_exact_outputs_lead(guidance):
    """A transformer whose output is a parabola in the step, whatever its input.

    The forecast (order 0) is wrong in every gap; only the correction can bring the latents home,
    and only if the tracker's sigmas are the scheduler's own.
    """
    pipe, call = tiny_wan(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    latents_only = {**call, "num_inference_steps": 12}
    ends = []
    pipe.scheduler.step = _recording(pipe.scheduler.step, ends)
    transformer = pipe.transformer
    count = {"calls": 0}
    per_step = 2

    def parabola(module, args, output):
        i = count["calls"] // per_step
        side = 1.0 + 0.5 * (count["calls"] % per_step)
        count["calls"] += 1
        return output * 0 + side * (0.5 + 0.05 * i - 0.004 * i * i)

    last = transformer.proj_out
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
        steps = "steps=[0,1,4,8,11],target=hidden"
        spec = f"step_mask:{steps},correction={correction},guidance={guidance}"
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


def test_long_gaps_of_noise_prediction_are_left_alone():
    for length in (LONGEST_WITH_FEEDBACK, LONGEST_WITH_FEEDBACK + 1):
        ends = [
            GapEnd(torch.ones(1), -0.1, length, False, feedback=feedback) for feedback in (0.5, 0.0)
        ]
        assert (ends[0].correction is None) == (length > LONGEST_WITH_FEEDBACK)
        assert ends[1].correction is not None, "flow matching has no feedback"


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler])
def test_noise_prediction_answers_to_the_error_and_is_allowed_for(kind, interval=3):
    """Data of unit variance: the exact noise prediction is `x * sigma / (1 + sigma^2)`.

    At high noise the computed step at the end of a gap has already answered to the gap's error;
    without `feedback` the correction would count it twice.
    """
    options = {"clip_sample": False} if kind is DDIMScheduler else {"timestep_spacing": "leading"}
    scheduler = kind(**options, steps_offset=1)
    scheduler.set_timesteps(50)
    pipe = Pipe(scheduler=scheduler)
    tracker = DenoisingTracker(pipe)
    steps = [tracker.observe("transformer", t) for t in scheduler.timesteps]

    def run(mode):
        x = torch.full((1, 1, 1), steps[0].sigma, dtype=torch.float64)
        corrector, history = GapCorrector(), History(1)
        for i, step in enumerate(steps):
            # in latents that are data + sigma * noise
            width, feedback = step.sigma_next - step.sigma, step.feedback
            if mode == "naive":
                feedback = 0.0
            if mode == "dense" or i < 3 or (i - 2) % interval == 0 or i == len(steps) - 1:
                output = x * step.sigma / (1 + step.sigma**2)
                history.push(i, output)
                end = corrector.computed(float(i), width, output, feedback, mode == "full")
                if (
                    end is not None
                    and end.correction is not None
                    and mode not in ("dense", "plain")
                ):
                    output = output + end.correction
            else:
                output = history.forecast(i)
                freed = corrector.forecast(float(i), width, output)
                output = output if freed is None else output + freed
            x = x + width * output
        return float(x)

    exact = run("dense")
    errors = {m: abs(run(m) - exact) for m in ("plain", "naive", "answering", "full")}
    assert errors["full"] < errors["answering"] < errors["naive"]
    assert errors["full"] < errors["plain"]


def test_answers_are_kept_out_of_nodes_and_forecasts():
    """Outputs on a line, the end of the gap moved by the error it saw: the next gap is straight."""
    feedback, width = 0.5, -0.1
    corrector = GapCorrector()

    def line(i):
        return X + 0.3 * i

    for i in (0, 1):
        corrector.computed(float(i), width, line(i), feedback)
    wrong = 0.2 * torch.ones_like(X)
    for i in (2, 3):
        assert corrector.forecast(float(i), width, line(i) + wrong) is None
    error = 2 * width * wrong
    end = corrector.computed(4.0, width, line(4) + feedback * error, feedback)
    torch.testing.assert_close(end.error, error)
    torch.testing.assert_close(end.answer, feedback * error)
    torch.testing.assert_close(corrector._nodes[0][1], line(4))
    # a linear forecast from 1 and 4 carries 4/3 of the answer at 5
    carried = feedback * error * 4 / 3
    freed = corrector.forecast(5.0, width, line(5) + carried)
    torch.testing.assert_close(freed, -carried)
    torch.testing.assert_close(corrector._sum, width * line(5))
    reused = GapCorrector()
    reused._answers = corrector._answers
    torch.testing.assert_close(reused.forecast(5.0, width, X, order=0), -feedback * error)


def test_without_correction_answers_are_left_in():
    corrector = GapCorrector()
    corrector.computed(0.0, -0.1, X, 0.5, corrects=False)
    corrector.forecast(1.0, -0.1, X + 1)
    end = corrector.computed(2.0, -0.1, X, 0.5, corrects=False)
    assert end.answer is not None
    assert torch.equal(corrector._nodes[0][1], X)
    assert corrector.forecast(3.0, -0.1, X) is None


def test_flow_matching_has_no_answers():
    corrector = GapCorrector()
    for i in range(6):
        if i in (2, 3, 5):
            assert corrector.forecast(float(i), -0.1, X * i) is None
        else:
            corrector.computed(float(i), -0.1, X + i, 0.0)
    assert all(answer is None for _, answer in corrector._answers)


def test_report_says_what_became_of_the_correction():
    known = {
        "on": unipc(),
        "off: this scheduler draws noise in its steps": FlowMatchEulerDiscreteScheduler(
            stochastic_sampling=True
        ),
    }
    for expected, scheduler in known.items():
        pipe, call = tiny_wan(scheduler=scheduler)
        with ditaccel.accelerated(pipe, cache=ditaccel.AdaptiveTaylorConfig()):
            generate(pipe, call)
            assert f"Gap correction: {expected}." in str(ditaccel.report(pipe))
