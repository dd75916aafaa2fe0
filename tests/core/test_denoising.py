"""The tracker places calls by name, timestep and scheduler position, never by parity."""

import math
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from ditaccel.core._compat import NamedContext
from ditaccel.core.denoising.response import Probed
from ditaccel.core.denoising.schedule import Known, Schedule
from ditaccel.core.denoising.tracker import DenoisingTracker, Lone


class Pipe(SimpleNamespace):
    """Holds a scheduler, as pipelines do."""


def run(tracker, pipe, steps, branches=("cond", "uncond"), named=True, step=None, scale=1.0):
    """Imitate a pipeline's loop; returns the observed steps."""
    pipe.scheduler.set_timesteps(steps)
    seen = []
    sample = torch.zeros(1, 4)
    for index, t in enumerate(pipe.scheduler.timesteps):
        for branch in branches(index) if callable(branches) else branches:
            context = NamedContext(branch) if named else None
            seen.append(tracker.observe("transformer", t.expand(2) * scale, context))
        if step is not False:
            sample = pipe.scheduler.step(torch.zeros_like(sample), t, sample).prev_sample
    return seen


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, FlowMatchEulerDiscreteScheduler])
def test_steps_branches_and_generations(scheduler, named):
    pipe = Pipe(scheduler=scheduler())
    tracker = DenoisingTracker(pipe)
    for generation in range(2):
        seen = run(tracker, pipe, 5, named=named)
        assert [s.index for s in seen] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert {s.generation for s in seen} == {generation}
        assert [s.branch for s in seen[:2]] == (["cond", "uncond"] if named else ["call0", "call1"])
        assert [s.is_last for s in seen] == [False] * 8 + [True] * 2
        assert all(s.total == 5 for s in seen)


@pytest.mark.parametrize("named", [True, False])
def test_guidance_on_a_part_of_the_steps_keeps_branches_apart(named):
    pipe = Pipe(scheduler=DDIMScheduler())
    tracker = DenoisingTracker(pipe)
    seen = run(tracker, pipe, 6, lambda i: ("cond", "uncond") if i < 2 else ("cond",), named=named)
    first = "cond" if named else "call0"
    assert [s.index for s in seen if s.branch == first] == [0, 1, 2, 3, 4, 5]
    assert [s.index for s in seen if s.branch != first] == [0, 1]


@pytest.mark.parametrize("named", [True, False])
def test_heun_visits_a_timestep_twice(named):
    pipe = Pipe(scheduler=FlowMatchHeunDiscreteScheduler())
    seen = run(DenoisingTracker(pipe), pipe, 4, named=named)
    calls = len(pipe.scheduler.timesteps)
    assert [s.index for s in seen] == [i for i in range(calls) for _ in range(2)]
    assert len({s.branch for s in seen}) == 2


def test_sigma_follows_the_scheduler():
    pipe = Pipe(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    seen = run(DenoisingTracker(pipe), pipe, 4, ("cond",))
    assert [s.sigma for s in seen] == pytest.approx(pipe.scheduler.sigmas[:4].tolist())
    ddim = Pipe(scheduler=DDIMScheduler())
    sigmas = [s.sigma for s in run(DenoisingTracker(ddim), ddim, 4, ("cond",))]
    assert sigmas == sorted(sigmas, reverse=True) and sigmas[-1] > 0


def test_timesteps_scaled_to_one_and_reversed_are_found_in_the_schedule():
    for convert in (lambda t: t / 1000, lambda t: (1000 - t) / 1000):
        pipe = Pipe(scheduler=FlowMatchEulerDiscreteScheduler())
        tracker = DenoisingTracker(pipe)
        pipe.scheduler.set_timesteps(5)
        seen = [tracker.observe("transformer", convert(t)) for t in pipe.scheduler.timesteps]
        assert [s.index for s in seen] == [0, 1, 2, 3, 4]
        assert {s.total for s in seen} == {5} and {s.generation for s in seen} == {0}


RISING = [
    (lambda: FlowMatchEulerDiscreteScheduler(), lambda t: (1000 - t) / 1000),  # Z-Image, Lumina 2
    (lambda: FlowMatchEulerDiscreteScheduler(invert_sigmas=True), lambda t: t),  # Mochi
    (  # OmniGen
        lambda: FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
        lambda t: t,
    ),
]


@pytest.mark.parametrize(("scheduler", "convert"), RISING)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_loops_of_rising_timesteps_end_where_noise_comes_back(scheduler, convert, steps):
    """Several loops in a call, without a new schedule: back is what the schedule says it is."""
    pipe = Pipe(scheduler=scheduler())
    pipe.scheduler.set_timesteps(sigmas=[1 - i / 8 for i in range(8)])
    for start in (0, 8 - steps):
        tracker = DenoisingTracker(pipe)
        loop = pipe.scheduler.timesteps[start : start + steps]
        seen = [
            tracker.observe("t", convert(t).expand(2)) for _ in range(3) for t in (*loop, loop[-1])
        ]
        if steps == 1:  # a repeated timestep is another branch, whichever way time runs
            assert {s.generation for s in seen} == {0}
            continue
        per_loop = [*range(steps), steps - 1]
        assert [s.index for s in seen] == per_loop * 3
        assert [s.generation for s in seen] == [g for g in range(3) for _ in per_loop]
        assert [s.branch for s in seen] == (["call0"] * steps + ["call1"]) * 3


@pytest.mark.parametrize("convert", [lambda t: t / 1000, lambda t: (1000 - t) / 1000])
def test_a_loop_of_one_step_is_told_from_the_next_one(convert):
    """After one step nothing is learnt from the calls themselves."""
    pipe = Pipe(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    pipe.scheduler.set_timesteps(8)
    early, late = convert(pipe.scheduler.timesteps[1]), convert(pipe.scheduler.timesteps[5])
    for first, second, generations in ((late, early, [0, 1]), (early, late, [0, 0])):
        tracker = DenoisingTracker(pipe)
        seen = [tracker.observe("t", first), tracker.observe("t", second)]
        assert [s.generation for s in seen] == generations


def test_a_reversed_schedule_that_ends_at_zero_begins_at_its_beginning():
    """Z-Image's schedule ends at timestep 0; its first step hands 0 to the transformer too."""
    pipe = Pipe(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    pipe.scheduler.sigma_min = 0.0
    pipe.scheduler.set_timesteps(8)
    assert pipe.scheduler.timesteps[0] == 1000 and pipe.scheduler.timesteps[-1] == 0
    tracker = DenoisingTracker(pipe)
    seen = [tracker.observe("t", (1000 - t) / 1000) for t in pipe.scheduler.timesteps]
    assert [s.index for s in seen] == list(range(8)) and {s.generation for s in seen} == {0}
    assert {s.total for s in seen} == {8}
    assert [s.sigma for s in seen] == pytest.approx(pipe.scheduler.sigmas[:8].tolist())


def test_a_timestep_in_the_middle_may_mean_either_direction():
    """Half of the noise is 0.5 both ways: then the first steps tell."""
    pipe = Pipe(scheduler=FlowMatchEulerDiscreteScheduler())
    pipe.scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    pipe.scheduler.set_begin_index(2)
    for convert in (lambda t: t / 1000, lambda t: (1000 - t) / 1000):
        tracker = DenoisingTracker(pipe)
        loop = pipe.scheduler.timesteps[2:]
        seen = [tracker.observe("t", convert(t)) for _ in range(2) for t in loop]
        assert [(s.generation, s.index) for s in seen] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_half_precision_timesteps_do_not_merge_steps():
    pipe = Pipe(scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0))
    seen = []
    tracker = DenoisingTracker(pipe)
    pipe.scheduler.set_timesteps(50)
    sample = torch.zeros(1, 4)
    for t in pipe.scheduler.timesteps:
        seen.append(tracker.observe("transformer", (t / 1000).bfloat16()))
        sample = pipe.scheduler.step(sample, t, sample).prev_sample
    assert [s.index for s in seen] == list(range(50))
    assert {s.branch for s in seen} == {"call0"}


def test_image_to_image_starts_inside_the_schedule():
    pipe = Pipe(scheduler=DDIMScheduler())
    pipe.scheduler.set_timesteps(10)
    tracker = DenoisingTracker(pipe)
    seen = [tracker.observe("transformer", t) for t in pipe.scheduler.timesteps[6:]]
    assert [s.index for s in seen] == [0, 1, 2, 3]
    assert seen[-1].is_last and not seen[-2].is_last


def test_several_loops_per_call_are_several_generations():
    pipe = Pipe(scheduler=DDIMScheduler())
    pipe.scheduler.set_timesteps(3)
    tracker = DenoisingTracker(pipe)
    seen = [tracker.observe("t", t) for _ in range(3) for t in pipe.scheduler.timesteps]
    assert [s.generation for s in seen] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_scheduler_replaced_after_accelerate_is_followed():
    pipe = Pipe(scheduler=DDIMScheduler())
    tracker = DenoisingTracker(pipe)
    run(tracker, pipe, 5)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    seen = run(tracker, pipe, 7)
    assert {s.generation for s in seen} == {1} and {s.total for s in seen} == {7}


def test_broken_off_run_does_not_leak_into_the_next():
    pipe = Pipe(scheduler=DDIMScheduler())
    tracker = DenoisingTracker(pipe)
    pipe.scheduler.set_timesteps(5)
    tracker.observe("transformer", pipe.scheduler.timesteps[0])
    tracker.observe("transformer", pipe.scheduler.timesteps[1])
    seen = run(tracker, pipe, 5)
    assert {s.generation for s in seen} == {1} and seen[0].index == 0


def test_two_transformers_share_the_steps():
    pipe = Pipe(scheduler=FlowMatchEulerDiscreteScheduler())
    tracker = DenoisingTracker(pipe)
    pipe.scheduler.set_timesteps(6)
    seen = [
        tracker.observe("transformer" if i < 3 else "transformer_2", t, NamedContext("cond"))
        for i, t in enumerate(pipe.scheduler.timesteps)
    ]
    assert [s.index for s in seen] == [0, 1, 2, 3, 4, 5]
    assert {s.branch for s in seen} == {"cond"}


def test_bare_transformer_without_pipeline():
    tracker = DenoisingTracker()
    seen = [tracker.observe("transformer", t) for t in (9.0, 9.0, 5.0, 5.0, 9.0, 9.0)]
    assert [(s.generation, s.index, s.branch) for s in seen] == [
        (0, 0, "call0"),
        (0, 0, "call1"),
        (0, 1, "call0"),
        (0, 1, "call1"),
        (1, 0, "call0"),
        (1, 0, "call1"),
    ]
    assert all(s.total is None and not s.is_last for s in seen)


def test_one_timestep_for_ever_is_no_denoising_loop():
    tracker = DenoisingTracker()
    seen = [tracker.observe("transformer", 1.0) for _ in range(100)]
    assert all(s.lone is None for s in seen[:64])
    assert all(s.lone is Lone.STANDING for s in seen[64:])
    assert tracker.observe("transformer", 0.5).lone is None


def test_same_context_twice_in_a_step_is_two_branches():
    tracker = DenoisingTracker()
    seen = [tracker.observe("t", 5.0, NamedContext("cond")).branch for _ in range(2)]
    assert seen == ["cond", "cond#2"]


def test_per_token_timesteps_count_by_the_noisiest():
    tracker = DenoisingTracker()
    assert tracker.observe("t", torch.tensor([[0.0, 700.0, 700.0]])).timestep == 700.0


@pytest.mark.parametrize("set_begin", [True, False])
@pytest.mark.parametrize("start", [3, 15, 30, 41])
def test_scaled_timesteps_starting_late_are_not_taken_for_reversed_ones(start, set_begin):
    pipe = Pipe(scheduler=FlowMatchEulerDiscreteScheduler())
    pipe.scheduler.set_timesteps(sigmas=[1 - i / 50 for i in range(50)])
    if set_begin:
        pipe.scheduler.set_begin_index(start)
    tracker = DenoisingTracker(pipe)
    seen = [tracker.observe("t", t / 1000) for t in pipe.scheduler.timesteps[start:]]
    assert {s.total for s in seen} == {50 - start} and seen[-1].is_last
    assert [s.sigma for s in seen] == pytest.approx(pipe.scheduler.sigmas[start:50].tolist())


@pytest.mark.parametrize("steps", [20, 30, 50])
def test_ddim_widths_are_the_schedulers_own(steps):
    """A DDIM step on zero latents with output one is `scale * (sigma_next - sigma)`."""
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    pipe = Pipe(scheduler=scheduler)
    tracker = DenoisingTracker(pipe)
    scheduler.set_timesteps(steps)
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    for t in scheduler.timesteps:
        step = tracker.observe("t", t)
        moved = float(scheduler.step(one, t, zero).prev_sample)
        assert step.response.latents[step.index + 1, step.index] == pytest.approx(moved, rel=1e-5)
        expected = (step.sigma_next - step.sigma) / (1 + step.sigma_next**2) ** 0.5
        assert moved == pytest.approx(expected, rel=1e-4, abs=1e-6)
        share = ((1 + step.schedule.sigmas[-1] ** 2) / (1 + step.sigma**2)) ** 0.5
        assert step.response.share(step.index) == pytest.approx(share, rel=1e-4)


def test_only_noise_prediction_answers_to_the_latents():
    """Velocities of data of unit variance do not depend on it, those of flow matching hardly."""
    options = {"clip_sample": False, "timestep_spacing": "linspace"}
    answers = {
        "epsilon": DDIMScheduler(**options),
        "velocity": DDIMScheduler(**options, prediction_type="v_prediction"),
        "sigmas": EulerDiscreteScheduler(),
        "flow": FlowMatchEulerDiscreteScheduler(),
        "edm": EDMEulerScheduler(),
    }
    for which, scheduler in answers.items():
        pipe = Pipe(scheduler=scheduler)
        step = run(DenoisingTracker(pipe), pipe, 20, ("cond",))[10]
        noise = which in ("epsilon", "sigmas")
        expected = step.sigma / (1 + step.sigma**2) if noise else 0.0
        assert step.feedback == pytest.approx(expected), which
        assert step.flow == (which == "flow")


def test_a_pipeline_taken_apart_leaves_its_scheduler():
    pipe = Pipe(scheduler=FlowMatchEulerDiscreteScheduler())
    tracker = DenoisingTracker(pipe)
    run(tracker, pipe, 4)
    scheduler = pipe.scheduler
    del pipe
    scheduler.set_timesteps(5)
    seen = [tracker.observe("t", t) for t in scheduler.timesteps]
    assert {s.total for s in seen} == {5}


def test_given_frames_with_timesteps_of_their_own_change_nothing():
    """Wan 2.2 5B, LTX image to video: a timestep per token, small where frames are given."""
    pipe = Pipe(scheduler=FlowMatchEulerDiscreteScheduler())
    tracker = DenoisingTracker(pipe)
    for generation in range(2):
        pipe.scheduler.set_timesteps(4)
        for index, t in enumerate(pipe.scheduler.timesteps):
            timestep = torch.cat([torch.full((1, 3), 1e-4), t.expand(1, 9)], 1)
            for batch in (2, 1):  # guidance may be batched for some of the calls
                step = tracker.observe("transformer", timestep.expand(batch, -1))
                assert (step.generation, step.index, step.total) == (generation, index, 4)
                assert step.timestep == pytest.approx(float(t))
                assert step.sigma == pytest.approx(float(pipe.scheduler.sigmas[index]))


def frames_in_turn(steps=4, lag=2, frames=3):
    """Rows of diffusion forcing: each frame starts `lag` steps after the one before it."""
    times = [999.0, *torch.linspace(1000, 250, steps).tolist(), 0.0]
    for row in range(1, steps + lag * (frames - 1) + 1):
        yield torch.tensor([[times[min(max(row - lag * f, 0), steps + 1)] for f in range(frames)]])


def test_frames_that_take_turns_are_one_loop_of_unknown_length():
    """The largest timestep rests while later frames wait, and the schedule is one frame's."""
    pipe = Pipe(scheduler=FlowMatchEulerDiscreteScheduler())
    tracker = DenoisingTracker(pipe)
    pipe.scheduler.set_timesteps(4)
    for generation in range(2):
        seen = []
        for timestep in frames_in_turn():
            for branch in ("cond", "uncond"):
                seen.append(tracker.observe("transformer", timestep, NamedContext(branch)))
        assert {s.generation for s in seen} == {generation}
        assert [s.index for s in seen[::2]] == list(range(8))
        assert [s.branch for s in seen] == ["cond", "uncond"] * 8
        assert {(s.total, s.sigma, s.response) for s in seen[4:]} == {(None, None, None)}
        assert not any(s.is_last for s in seen)


def test_a_window_that_moves_on_over_the_frames_is_a_new_generation():
    """The same shape holds other frames: what was remembered is of the old ones."""
    tracker = DenoisingTracker(Pipe(scheduler=FlowMatchEulerDiscreteScheduler()))
    rows = [[900.0, 999.0, 999.0], [600.0, 999.0, 999.0], [300.0, 900.0, 999.0]]
    assert [tracker.observe("transformer", torch.tensor([r])).generation for r in rows] == [0] * 3
    assert tracker.observe("transformer", torch.tensor([[600.0, 900.0, 999.0]])).generation == 1


def test_preconditioned_steps_start_where_the_schedule_does():
    """Cosmos 2: timesteps are sigma / (1 + sigma), and latents are mixed into raw outputs."""
    pipe = Pipe(
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True, shift_terminal=None)
    )
    scheduler = pipe.scheduler
    scheduler.register_to_config(sigma_max=80.0, sigma_min=0.002)
    tracker = DenoisingTracker(pipe)
    scheduler.set_timesteps(sigmas=torch.linspace(0, 1, 6).numpy())
    assert float(scheduler.sigmas[0]) == pytest.approx(80.0)
    draw = torch.Generator().manual_seed(1)
    raw = torch.randn(7, 1, 2, 2, 2, generator=draw, dtype=torch.float64)
    rows = [80.0 * raw[6]]
    for index, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[index]
        step = tracker.observe("transformer", (sigma / (1 + sigma)).expand(2), preconditioned=True)
        assert (step.index, step.total, step.feedback) == (index, 6, 0.0)
        assert step.sigma == pytest.approx(float(sigma))
        assert step.response.input_scale[index] == pytest.approx(1 / (1 + float(sigma)))
        latents, noise = rows[-1], sigma / (1 + sigma)
        denoised = (1 - noise) * latents - noise * raw[index]
        guided = (latents - denoised) / sigma
        rows.append(scheduler.step(guided, t, latents, return_dict=False)[0])
    weights = torch.tensor(step.response.latents)
    expected = torch.tensordot(weights, torch.cat([raw[:6], 80.0 * raw[6:]]), 1)
    torch.testing.assert_close(expected, torch.stack(rows), rtol=1e-4, atol=1e-4)


def test_schedulers_that_precondition_on_their_own_are_not_done_so_twice():
    pipe = Pipe(scheduler=EDMEulerScheduler())
    pipe.scheduler.set_timesteps(6)
    known = Schedule.of(pipe.scheduler, float(pipe.scheduler.timesteps[0]))
    step = DenoisingTracker(pipe).observe("t", pipe.scheduler.timesteps[0], preconditioned=True)
    assert (step.response.latents == known.response.latents).all()


def test_flow_matching_is_not_taken_for_preconditioned():
    """Cosmos 2.5 shares the transformer's class with 1 and 2."""
    pipe = Pipe(scheduler=FlowMatchEulerDiscreteScheduler())
    pipe.scheduler.set_timesteps(4)
    tracker = DenoisingTracker(pipe)
    step = tracker.observe("transformer", pipe.scheduler.timesteps[0], preconditioned=True)
    assert step.response.is_plain and step.response.share(0) == pytest.approx(1.0)


def test_a_schedule_is_frozen_and_is_lost_as_a_whole():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert Schedule.of(None, 1.0).known is Known.NO_SCHEDULER
    assert Schedule.of(scheduler, 1000.0).known is Known.NOT_SET
    scheduler.set_timesteps(4)
    begun = Schedule.of(scheduler, float(scheduler.timesteps[0]))
    assert (begun.total, begun.known, begun.probed) == (4, Known.FOLLOWED, Probed.LINEAR)
    assert begun.at(1, float(scheduler.timesteps[1])) is begun
    lost = begun.at(1, 3.0)
    assert (lost.total, lost.known, lost.probed) == (None, Known.OTHER, None)
    assert lost.sigma(0) is None and begun.sigma(0) == 1.0 and lost.lost() is lost
    with pytest.raises(FrozenInstanceError):
        begun.offset = 2
    scheduler.set_timesteps(4)
    again = begun.made_again(scheduler, 1)
    assert again is not None and again.timesteps is scheduler.timesteps
    scheduler.set_timesteps(5)
    assert begun.made_again(scheduler, 1) is None


def test_a_multistep_scheduler_that_is_set_again_forgets_what_it_was_given():
    """Nothing is corrected then; Euler keeps nothing, so that its response holds."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    for scheduler, holds in (
        (UniPCMultistepScheduler(**flow), False),
        (FlowMatchEulerDiscreteScheduler(), True),
    ):
        scheduler.set_timesteps(6)
        begun = Schedule.of(scheduler, float(scheduler.timesteps[0]))
        scheduler.set_timesteps(6)
        again = begun.made_again(scheduler, 1)
        assert begun.response is not None and (again.response is not None) == holds


def log_snrs(scheduler, steps=6):
    pipe = Pipe(scheduler=scheduler)
    return [s.log_snr for s in run(DenoisingTracker(pipe), pipe, steps, ("cond",), step=False)]


def test_log_snr_of_flow_matching_and_of_noise_prediction():
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    seen = log_snrs(flow)
    sigmas = [float(s) for s in flow.sigmas[:6]]
    assert seen == pytest.approx([math.log((1.001 - s) / (s + 0.001)) for s in sigmas])
    assert seen[0] == pytest.approx(math.log(0.001 / 1.001), rel=1e-4)  # finite where all is noise
    scheduler = EulerDiscreteScheduler()
    seen = log_snrs(scheduler)
    sigmas = [float(s) for s in scheduler.sigmas[:6]]
    lengths = [math.hypot(1.0, s) for s in sigmas]
    expected = [
        math.log((1 / n + 0.001) / (s / n + 0.001)) for s, n in zip(sigmas, lengths, strict=True)
    ]
    assert seen == pytest.approx(expected, rel=1e-5) and seen == sorted(seen)


def test_log_snr_is_that_of_the_picture_where_a_schedule_counts_from_noise_to_picture():
    schedule = Schedule(sigmas=(0.0, 0.25, 0.5, 1.0), values=(0.0, 0.25, 0.5), offset=0)
    assert schedule.log_snr(1) == pytest.approx(math.log(0.251 / 0.751))
    assert schedule.log_snr(0) == pytest.approx(math.log(0.001 / 1.001))
    assert schedule.log_snr(3) is None


def test_no_log_snr_where_noise_levels_are_unknown_or_repeat():
    assert Schedule().log_snr(0) is None
    heun = FlowMatchHeunDiscreteScheduler()
    assert log_snrs(heun, 4) == [None] * len(heun.timesteps)
    repeated = Schedule(sigmas=(1.0, 0.5, 0.5, 0.0), values=(1000.0, 500.0, 500.0), offset=0)
    assert repeated.log_snr(0) is None
