"""Parallel denoising: what is foreseen, what is accepted, exactness, and rounds over processes."""

import math
import multiprocessing

import pytest
import torch
from conformance import Subject, skipped
from ditaccel.pipelines import adapters
from tiny import FAMILIES, generate

import ditaccel
from ditaccel.calls.engine.ahead import foreseen, outputs_behind, repeated, timesteps_as_given
from ditaccel.calls.engine.method import Site, TransformerCall
from ditaccel.calls.parallel_denoising import ParallelDenoisingConfig
from ditaccel.core.denoising.schedule import Schedule
from ditaccel.core.denoising.tracker import DenoisingStep


def schedulers():
    import diffusers

    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    return {
        "Euler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        "UniPC": diffusers.UniPCMultistepScheduler(**flow),
        "DPM++": diffusers.DPMSolverMultistepScheduler(**flow),
        "DDIM": diffusers.DDIMScheduler(clip_sample=False),
    }


def loop(scheduler, output, steps=8):
    """A loop by hand: inputs by step, outputs by step, and its schedule."""
    scheduler.set_timesteps(steps)
    schedule = Schedule.of(scheduler, float(scheduler.timesteps[0]))
    assert schedule.response is not None
    torch.manual_seed(0)
    latents, inputs, outputs = torch.randn(1, 2, 3, dtype=torch.float64), {}, []
    for index, timestep in enumerate(scheduler.timesteps):
        scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)(latents, timestep)
        inputs[index] = scaled.clone()
        outputs.append(output(schedule.sigma(index)).to(latents.dtype))
        latents = scheduler.step(outputs[-1], timestep, latents).prev_sample
    return inputs, outputs, schedule


@pytest.mark.parametrize("name", ["Euler", "UniPC", "DPM++", "DDIM"])
def test_latents_tell_the_outputs_that_made_them(name):
    torch.manual_seed(1)
    noise = torch.randn(9, 1, 2, 3, dtype=torch.float64)
    drawn = iter(noise)
    inputs, outputs, schedule = loop(schedulers()[name], lambda sigma: next(drawn))
    found = outputs_behind(inputs, schedule.response, 7)
    for made, true in zip(found, outputs, strict=False):
        torch.testing.assert_close(made, true, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["Euler", "UniPC", "DPM++", "DDIM"])
def test_a_straight_line_of_outputs_is_foreseen_to_the_end(name):
    start, slope = torch.ones(1, 2, 3).double(), torch.linspace(-1, 1, 6).view(1, 2, 3).double()
    inputs, _, schedule = loop(schedulers()[name], lambda sigma: start + slope * sigma)
    known = {index: inputs[index] for index in range(4)}
    for ahead, made in enumerate(foreseen(known, schedule, 3, 4), 1):
        torch.testing.assert_close(made, inputs[3 + ahead], rtol=5e-3, atol=5e-3)


def test_without_a_response_latents_go_on_and_what_stands_still_stays():
    schedule = Schedule(values=(900.0, 600.0, 300.0), sigmas=(0.9, 0.6, 0.3, 0.0), offset=0)
    inputs = {0: torch.tensor([[1.0, 5.0]]), 1: torch.tensor([[2.0, 5.0]])}
    (made,) = foreseen(inputs, schedule, 1, 1)
    torch.testing.assert_close(made, torch.tensor([[3.0, 5.0]]))
    assert timesteps_as_given({0: 0.9, 1: 0.6}, schedule, 1, 1) == pytest.approx([0.3])
    reverse = timesteps_as_given({0: 0.1, 1: 0.4}, schedule, 1, 1)
    assert reverse == pytest.approx([0.7])


def test_arguments_with_an_entry_per_sample_are_repeated():
    embeds, ids = torch.zeros(2, 3, 4), torch.zeros(5, 3)
    given = {"embeds": embeds, "shapes": [(1, 2, 2), (1, 2, 2)], "none": None, "size": (64, 64)}
    given["layers"] = embeds, embeds
    made = repeated({**given, "ids": ids}, batch=2, count=3)
    assert made["embeds"].shape[0] == 6 and len(made["shapes"]) == 6
    assert made["ids"] is ids and made["none"] is None and made["size"] == (64, 64)
    assert [len(each) for each in made["layers"]] == [6, 6]


def test_timesteps_in_half_precision_are_known_as_exactly_as_the_schedule():
    scheduler = schedulers()["Euler"]
    scheduler.set_timesteps(20)
    schedule = Schedule.of(scheduler, 1.0)
    half = [float(t.to(torch.bfloat16) / 1000) for t in scheduler.timesteps]
    eps = torch.finfo(torch.bfloat16).eps
    for index in range(1, 17):
        made = timesteps_as_given(dict(enumerate(half)), schedule, index, 3, eps)
        true = [float(t) / 1000 for t in scheduler.timesteps[index + 1 : index + 4]]
        assert made == pytest.approx(true, rel=1e-6)


def test_in_half_precision_as_many_calls_are_answered():
    subject = Subject(FAMILIES["flux"], 8)
    pipe = subject.pipe.to(torch.bfloat16)
    config = ParallelDenoisingConfig(window=3, tolerance=1e9, warmup=2)
    with ditaccel.accelerated(pipe, config):
        half = {k: v.bfloat16() if "embeds" in k else v for k, v in subject.call.items()}
        generate(pipe, half)
        log = ditaccel.report(pipe).call_logs[0]
    # of 8 steps two alone, then rounds of three
    assert log.changed == log.calls // 2 > 0


def _carried(**options):
    """The method on a bare transformer of the Flux family, and a loop of 9 steps for it."""
    carried = ParallelDenoisingConfig(window=3, tolerance=1e9, warmup=2, **options).call_method()
    carried.attach(Site("transformer", torch.nn.Linear(1, 1), adapters()["flux"], print), None)
    scheduler = schedulers()["Euler"]
    scheduler.set_timesteps(9)
    return carried, scheduler.timesteps, Schedule.of(scheduler, float(scheduler.timesteps[0]))


@pytest.mark.parametrize(
    ("listed", "returned", "calls", "why"),
    [
        (False, 2, 10, "returns more than latents"),  # one round shows it
        (True, 1, 9, "condition images come with the latents"),
    ],
)
def test_what_rounds_cannot_serve_is_computed_alone(listed, returned, calls, why):
    carried, timesteps, schedule = _carried()
    sizes, latents = [], torch.randn(1, 4, 2)

    def inner(hidden_states, timestep):
        sizes.append(len(hidden_states))
        return (torch.ones(len(hidden_states), 4, 2),) * returned

    for index, timestep in enumerate(timesteps):
        sample = [[torch.zeros(2, 2), latents[0]]] if listed else latents
        named = {"hidden_states": sample, "timestep": timestep}
        step = DenoisingStep(0, index, "cond", 1.0, total=9, schedule=schedule)
        carried.run(TransformerCall(step, inner, (), named, named))
    assert len(sizes) == calls and carried.log.changed == 0
    assert why in carried._why


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_exact_at_tolerance_0_side_by_side_above_and_undone(name):
    subject = Subject(FAMILIES[name], 7)
    with ditaccel.accelerated(subject.pipe, "parallel_denoising:tolerance=0"):
        assert torch.equal(subject.run(), subject.dense) and not skipped(subject.pipe)
    ditaccel.accelerate(subject.pipe, ParallelDenoisingConfig(window=3, tolerance=1e9, warmup=2))
    sizes = []
    handle = subject.pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    result = subject.run()
    handle.remove()
    log = ditaccel.report(subject.pipe).call_logs[0]
    branches = len({call.branch for call in ditaccel.report(subject.pipe).calls})
    total = log.calls // branches
    # two steps alone, then rounds of three, and what is left
    rounds = math.ceil((total - 2) / 3)
    assert log.calls - log.changed == branches * (2 + rounds)
    assert max(sizes) == 3 and len(sizes) == log.calls - log.changed
    assert torch.isfinite(result).all() and not torch.equal(result, subject.dense)
    assert torch.equal(subject.run(), result), "state outlived its generation"
    assert "of the calls were waited for" in str(ditaccel.report(subject.pipe))
    ditaccel.restore(subject.pipe)
    subject.assert_as_found("parallel_denoising")


def test_the_nearer_the_closer_to_dense():
    subject = Subject(FAMILIES["flux"], 12)
    errors, answered = [], []
    for tolerance in (1e-4, 1e-2, 1.0):
        with ditaccel.accelerated(subject.pipe, ParallelDenoisingConfig(tolerance=tolerance)):
            errors.append(float((subject.run() - subject.dense).square().mean()))
            answered.append(ditaccel.report(subject.pipe).call_logs[0].changed)
    assert answered == sorted(answered) and answered[-1] > 0
    assert errors[0] <= errors[-1]


def test_what_is_never_foreseen_is_reported():
    subject = Subject(FAMILIES["flux"], 5)
    ditaccel.accelerate(subject.pipe, ParallelDenoisingConfig(tolerance=1e-12))
    with pytest.warns(match="latents were never foreseen to within tolerance=1e-12"):
        result = subject.run()
    torch.testing.assert_close(result, subject.dense, rtol=1e-4, atol=1e-5)


def test_two_methods_that_decide_over_steps_are_refused():
    pipe, _ = FAMILIES["flux"]()
    with pytest.raises(ditaccel.ConfigError, match="parallel_denoising and reuse cannot be"):
        ditaccel.accelerate(pipe, "reuse & parallel_denoising")
    with pytest.raises(ditaccel.UsageError, match="start the script with torchrun"):
        ditaccel.accelerate(pipe, ParallelDenoisingConfig(processes=True))
    with pytest.raises(ditaccel.ConfigError, match="window is 1"):
        ParallelDenoisingConfig(window=1)


def _one_of_two(rank, folder):
    """One process of two: the same call, its own half of each round."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    subject = Subject(FAMILIES["flux"], 8)
    config = ParallelDenoisingConfig(processes=True, tolerance=1e9, warmup=2)
    ditaccel.accelerate(subject.pipe, config)
    result = subject.run()
    log = ditaccel.report(subject.pipe).call_logs[0]
    refused = ""
    try:
        subject.run(num_inference_steps=1)
    except ditaccel.ConfigError as error:
        refused = str(error)
    torch.save((result, log.calls, log.changed, refused), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_the_rounds(tmp_path):
    fork = multiprocessing.get_context("fork")  # (nothing has to be imported again)
    ranks = [fork.Process(target=_one_of_two, args=(rank, tmp_path)) for rank in range(2)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(55)
        if each.is_alive():
            each.kill()
    assert [each.exitcode for each in ranks] == [0, 0]
    (first, calls, changed, refused), (second, *_) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in range(2)
    )
    assert torch.equal(first, second), "ranks decided differently"
    assert 0 < changed < calls
    assert "2 processes are more than the 1 steps" in refused
    subject = Subject(FAMILIES["flux"], 8)
    config = ParallelDenoisingConfig(window=2, tolerance=1e9, warmup=2)
    with ditaccel.accelerated(subject.pipe, config):
        torch.testing.assert_close(first, subject.run(), rtol=1e-4, atol=1e-5)
