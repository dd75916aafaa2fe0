"""A pipeline's call owns a generation: examples of what `test_whose_call.py` mixes at random."""

import copy
import gc
import sys
import threading
import weakref

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PNDMScheduler
from tiny import generate, tiny_dit, tiny_flux, tiny_wan

import ditaccel

ADAPTIVE = "adaptive_taylor:tolerance=0.05,warmup=2"
REUSE = "reuse:interval=2"


def with_own_scheduler(pipe, **options):
    twin = copy.copy(pipe)
    twin.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **options)
    return twin


def fresh(make, spec, **changes):
    """What the same call gives on a pipeline that nothing else ever used."""
    pipe, call = make()
    ditaccel.accelerate(pipe, spec)
    result = generate(pipe, call, **changes)
    return result, [c.action for c in ditaccel.report(pipe).last_generation().calls]


def actions(pipe):
    return [c.action for c in ditaccel.report(pipe).last_generation().calls]


def kept(pipe):
    """Bytes that the caches hold."""
    return sum(c.nbytes for c in ditaccel.api._sessions(pipe)[0].caches.values())


@pytest.mark.parametrize("make", [tiny_dit, tiny_wan, tiny_flux])
@pytest.mark.parametrize("first", ["copy", "original"])
def test_the_schedule_that_decides_is_that_of_the_pipeline_that_calls(make, first):
    expected, decided = fresh(make, ADAPTIVE, num_inference_steps=12)
    pipe, call = make()
    ditaccel.accelerate(pipe, ADAPTIVE)
    twin = with_own_scheduler(pipe)
    one, other = (twin, pipe) if first == "copy" else (pipe, twin)
    generate(one, call, num_inference_steps=5)
    assert torch.equal(generate(other, call, num_inference_steps=12), expected)
    assert actions(pipe) == decided


def test_a_scheduler_replaced_on_either_side_is_followed():
    pipe, call = tiny_flux()
    ditaccel.accelerate(pipe, ADAPTIVE)
    derived = type(pipe).from_pipe(pipe)
    derived.set_progress_bar_config(disable=True)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=4.0)
    expected, _ = fresh(tiny_flux, ADAPTIVE)
    assert torch.equal(generate(derived, call), expected)
    shifted, call = tiny_flux()
    shifted.scheduler = FlowMatchEulerDiscreteScheduler(shift=4.0)
    ditaccel.accelerate(shifted, ADAPTIVE)
    assert torch.equal(generate(pipe, call), generate(shifted, call))


def test_presets_work_where_the_first_pipeline_is_gone():
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe, ADAPTIVE)
    pipe = type(pipe).from_pipe(pipe)
    pipe.set_progress_bar_config(disable=True)
    gc.collect()
    assert torch.equal(generate(pipe, call), fresh(tiny_wan, ADAPTIVE)[0])


@pytest.mark.parametrize("spec", ["taylorseer:interval=3", ADAPTIVE])
def test_two_threads_that_run_freely_give_what_each_gives_alone(spec):
    expected = {n: fresh(tiny_wan, spec, num_inference_steps=n)[0] for n in (6, 9)}
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe, spec)
    pipes, results = {6: with_own_scheduler(pipe), 9: with_own_scheduler(pipe)}, {}

    def work(steps):
        results[steps] = [generate(pipes[steps], call, num_inference_steps=steps) for _ in "123"]

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(n,)) for n in pipes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    finally:
        sys.setswitchinterval(before)
    assert all(torch.equal(r, expected[n]) for n in pipes for r in results[n])
    assert {c.branch for c in ditaccel.report(pipe).calls} == {"cond", "uncond"}


def test_each_thread_has_its_own_cache_context():
    pipe, _ = tiny_wan()
    ditaccel.accelerate(pipe, REUSE)
    listener_sees, entered, leave = [], threading.Event(), threading.Event()

    def other():
        with pipe.transformer.cache_context("other"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(10)
    hook = pipe.transformer._diffusers_hook.hooks["ditaccel_context"]
    listener_sees.append(hook.manager._context)
    leave.set()
    thread.join()
    assert listener_sees == [None]


def watched(pipe, monkeypatch, owner, name):
    """Note how many bytes the caches hold when a method is called."""
    seen, method = [], getattr(owner, name)

    def noting(*args, **kwargs):
        seen.append(kept(pipe))
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, noting)
    return seen


def test_histories_are_gone_before_the_vae_decodes(monkeypatch):
    """PNDM repeats a timestep; an interrupt leaves the loop's last steps out."""
    pipe, call = tiny_dit(scheduler=PNDMScheduler(skip_prk_steps=True))
    ditaccel.accelerate(pipe, "taylorseer:interval=3")
    seen = watched(pipe, monkeypatch, pipe.vae, "decode")
    generate(pipe, call)
    assert seen == [0]
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe, "taylorseer:interval=3")
    seen = watched(pipe, monkeypatch, pipe, "maybe_free_model_hooks")
    inside = []

    def stop(pipe, index, timestep, tensors):
        inside.append(kept(pipe))
        pipe._interrupt = index >= 2
        return tensors

    generate(pipe, call, callback_on_step_end=stop)
    assert seen[-1:] == [0] and inside[1] > 0


def test_an_exception_outside_of_the_transformer_frees_the_state():
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe, "taylorseer:interval=3")

    def boom(pipe, index, timestep, tensors):
        if index == 3:
            raise KeyboardInterrupt
        return tensors

    with pytest.raises(KeyboardInterrupt):  # which holds the frames
        generate(pipe, call, callback_on_step_end=boom)
    assert kept(pipe) == 0


def test_reset_frees_at_once_and_begins_a_new_generation():
    pipe, call = tiny_wan(layers=2)
    ditaccel.accelerate(pipe, REUSE)
    x = torch.randn(1, 4, 2, 8, 8)
    with torch.no_grad():
        for _ in range(2):
            for t in (900.0, 800.0):
                pipe.transformer(x, torch.tensor([t]), call["prompt_embeds"])
            assert kept(pipe) > 0
            assert ditaccel.reset(pipe) is pipe and kept(pipe) == 0
    calls = ditaccel.report(pipe).calls
    assert [(c.generation, c.step) for c in calls] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    other, _ = tiny_wan(layers=2)
    assert ditaccel.reset(other) is other  # there is nothing to free


class OwnEuler(FlowMatchEulerDiscreteScheduler):
    """A subclass, as people make them for other timesteps."""


class OwnStep(FlowMatchEulerDiscreteScheduler):
    """One that steps in a way of its own."""

    def step(self, *args, **kwargs):
        return super().step(*args, **kwargs)


class Noisy(FlowMatchEulerDiscreteScheduler):
    """One that draws noise."""

    def step(self, model_output, timestep, sample, **kwargs):
        noise = 1e-3 * torch.randn(sample.shape, dtype=sample.dtype)
        return super().step(model_output, timestep, sample + noise, **kwargs)


class Wrapper:
    """Passes all on, as request-scoped servers do."""

    def __init__(self, scheduler):
        self.scheduler = scheduler

    def __getattr__(self, name):
        if name == "scheduler":
            raise AttributeError(name)
        return getattr(self.scheduler, name)


@pytest.mark.parametrize(
    ("make", "on"),
    [
        (lambda: OwnEuler(shift=3.0), True),
        (lambda: Wrapper(FlowMatchEulerDiscreteScheduler(shift=3.0)), True),
        (lambda: Wrapper(OwnEuler(shift=3.0)), True),
        (lambda: OwnStep(shift=3.0), True),
        (lambda: Noisy(shift=3.0), False),
    ],
)
def test_schedulers_are_judged_by_what_they_do(make, on):
    expected, _ = fresh(tiny_wan, ADAPTIVE)
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe, ADAPTIVE)
    pipe.scheduler = make()
    result = generate(pipe, call)
    assert ditaccel.report(pipe).correction == (
        "on" if on else "off: this scheduler draws noise in its steps"
    )
    if on:
        assert torch.equal(result, expected)


def test_a_call_in_the_middle_of_a_call_is_dense_and_disturbs_nothing():
    pipe, call = tiny_wan(layers=2)
    x = torch.randn(1, 4, 2, 8, 8)
    with torch.no_grad():
        dense = pipe.transformer(x, torch.tensor([500.0]), call["prompt_embeds"])[0]
    ditaccel.accelerate(pipe, "taylorseer:interval=3,granularity=last_block")
    expected, nested, inside = generate(pipe, call), [], []

    def again(module, args):
        if not inside:
            inside.append(1)
            nested.append(pipe.transformer(x, torch.tensor([500.0]), call["prompt_embeds"])[0])
            inside.clear()

    pipe.transformer.blocks[1].register_forward_pre_hook(again)
    assert torch.equal(generate(pipe, call), expected)
    assert nested and all(torch.equal(n, dense) for n in nested)


def test_frames_keep_nothing_alive_and_tracers_see_what_they_saw():
    pipe, call = tiny_wan(layers=2)
    ditaccel.accelerate(pipe, REUSE)
    expected = generate(pipe, call)

    def tracer(frame, event, arg):
        return tracer

    sys.settrace(tracer)
    try:
        assert torch.equal(generate(pipe, call), expected)
    finally:
        sys.settrace(None)

    def loop():
        big = torch.zeros(1000)
        gone = weakref.ref(big)
        x = torch.randn(1, 4, 2, 8, 8)
        with torch.no_grad():
            pipe.transformer(x, torch.tensor([900.0]), call["prompt_embeds"])
        del big
        assert gone() is None
        assert not any("ditaccel" in name for name in locals())

    loop()


class Components:
    """Stands for a modular pipeline: blocks are handed it, and one of them loops."""

    def __init__(self, pipe):
        self.transformer, self.scheduler = pipe.transformer, pipe.scheduler


class DenoiseBlock:
    def __call__(self, components, x, t, embeds):
        predicted = []
        for condition in embeds:
            predicted.append(components.transformer(x, t.expand(1), condition)[0])
        return predicted


class LoopBlock:
    def __call__(self, components, x, steps, embeds):
        components.scheduler.set_timesteps(steps)
        for t in components.scheduler.timesteps:
            cond, uncond = DenoiseBlock()(components, x, t, embeds)
            guess = uncond + 4.0 * (cond - uncond)
            x = components.scheduler.step(guess, t, x, return_dict=False)[0]
        return x


def test_blocks_of_a_modular_pipeline_are_its_code():
    """No names, no `self` that is a pipeline, and one of the blocks is called once per step."""
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe, ADAPTIVE)
    components, seen = Components(pipe), []
    x = torch.randn(1, 4, 2, 8, 8)
    embeds = call["prompt_embeds"], call["negative_prompt_embeds"]
    with torch.no_grad():
        for _ in range(2):
            seen.append(LoopBlock()(components, x, 8, embeds))
            assert kept(pipe) == 0
    calls = ditaccel.report(pipe).calls
    assert torch.equal(*seen)
    assert [(c.generation, c.step) for c in calls[::2]] == [
        (g, i) for g in (0, 1) for i in range(8)
    ]
    assert ditaccel.report(pipe).forecasts > 0 and {c.branch for c in calls} == {"call0", "call1"}
