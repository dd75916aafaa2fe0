"""Loops written by hand: windows, branches without names, loops that were left, training."""

import warnings

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny import generate, tiny_wan

import ditaccel

ADAPTIVE = "adaptive_taylor:tolerance=0.05,warmup=2"
REUSE = "reuse:interval=2"


def windows_loop(pipe, call, scheduler, windows, named=False, copies=False):
    """A loop by hand over windows of one latent, with two branches each."""
    transformer = pipe.transformer
    scheduler.set_timesteps(10)
    x = torch.randn(windows, 1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    branches = {"cond": call["prompt_embeds"], "uncond": call["negative_prompt_embeds"]}
    with torch.no_grad():
        for t in scheduler.timesteps:
            parts = []
            for i in range(windows):
                piece = x[i].clone() if copies else x[i]
                found = {}
                for name, embeds in branches.items():
                    if named:
                        with transformer.cache_context(name):
                            found[name] = transformer(piece, t.expand(1), embeds)[0]
                    else:
                        found[name] = transformer(piece, t.expand(1), embeds)[0]
                parts.append(found["uncond"] + 4.0 * (found["cond"] - found["uncond"]))
            x = scheduler.step(torch.stack(parts), t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    "spec", ["taylorseer:interval=3", f"{ADAPTIVE},guidance=difference", "reuse:interval=2"]
)
def test_windows_keep_their_own_state_however_many_there_are(named, copies, spec):
    pipe, call = tiny_wan(layers=2)
    ditaccel.accelerate(pipe, spec)
    together = windows_loop(
        pipe, call, FlowMatchEulerDiscreteScheduler(shift=3.0), 6, named, copies
    )
    report = ditaccel.report(pipe)
    assert {c.generation for c in report.calls} == {0}
    assert len({c.branch for c in report.calls}) == 12 and report.forecasts > 0
    assert not any("too few" in line for line in report.warnings)
    pipe, call = tiny_wan(layers=2)
    ditaccel.accelerate(pipe, spec)
    alone = windows_loop(pipe, call, FlowMatchEulerDiscreteScheduler(shift=3.0), 1, named, copies)
    assert torch.equal(together[:1], alone)


@pytest.mark.parametrize("late", [False, True])
def test_branches_are_told_apart_by_their_conditioning(late):
    """`uncond` first, and guidance on every second step, or only on late ones."""
    pipe, call = tiny_wan()
    cond, uncond = call["prompt_embeds"], call["negative_prompt_embeds"]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)

    def loop(names):
        scheduler.set_timesteps(10)
        x = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for i, t in enumerate(scheduler.timesteps):
                guided = i >= 4 if late else i % 2 == 0
                v = {}
                for name, embeds in (("uncond", uncond), ("cond", cond)):
                    if name == "uncond" and not guided:
                        continue
                    if names:
                        with pipe.transformer.cache_context(name):
                            v[name] = pipe.transformer(x, t.expand(1), embeds)[0]
                    else:
                        # conditioning made anew at each call is the same by its values
                        v[name] = pipe.transformer(x, t.expand(1), embeds.clone())[0]
                guess = v["cond"]
                if guided:
                    guess = v["uncond"] + 4.0 * (guess - v["uncond"])
                x = scheduler.step(guess, t, x, return_dict=False)[0]
        return x

    results = []
    for names in (True, False):
        with ditaccel.accelerated(pipe, "taylorseer:interval=2"):
            results.append(loop(names))
    assert torch.equal(*results)


def test_conditioning_that_changes_at_every_step_is_one_branch():
    """A prompt that travels: after two steps it is known that it does."""
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe.transformer, REUSE)
    x = torch.randn(1, 4, 2, 8, 8)
    with torch.no_grad():
        for i in range(10):
            for embeds in (call["prompt_embeds"] * (1 + i), call["negative_prompt_embeds"]):
                pipe.transformer(x, torch.tensor([1000.0 - 90 * i]), embeds)
    calls = ditaccel.report(pipe.transformer).calls
    assert len({c.branch for c in calls}) == 3
    assert sum(c.action == "forecast" for c in calls) >= 8


def plain_loop(transformer, prompt, other, stop=None, seed=0, steps=5):
    """A bare transformer in a loop of one's own, left after `stop` calls."""
    x = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
    calls = 0
    with torch.no_grad():
        for i in range(steps):
            v = []
            for embeds in (prompt, other):
                if calls == stop:
                    raise KeyboardInterrupt
                calls += 1
                v.append(transformer(x, torch.tensor([1000.0 - 200 * i]), embeds)[0])
            x = x - (v[1] + 4.0 * (v[0] - v[1])) / steps
    return x


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
@pytest.mark.parametrize("changed", ["prompt", "seed", "nothing"])
@pytest.mark.parametrize("spec", ["taylorseer:interval=2", "confidence_gated_taylor:threshold=1e9"])
def test_a_loop_that_was_left_anywhere_leaves_nothing(stop, changed, spec):
    def run(broken):
        pipe, call = tiny_wan(layers=2)
        ditaccel.accelerate(pipe.transformer, spec)
        prompt, other = call["prompt_embeds"], call["negative_prompt_embeds"]
        if broken:
            with pytest.raises(KeyboardInterrupt):
                plain_loop(pipe.transformer, prompt, other, stop)
        later = prompt * 0.5 if changed == "prompt" else prompt
        return plain_loop(pipe.transformer, later, other, seed=int(changed == "seed"))

    assert torch.equal(run(True), run(False))


def test_helpers_that_are_called_once_per_step_or_branch_are_no_loops_of_their_own():
    pipe, call = tiny_wan(layers=2)
    transformer = pipe.transformer

    def branch(x, t, embeds):
        return transformer(x, torch.tensor([t]), embeds)[0]

    def guided(x, t):
        v = []
        for embeds in (call["prompt_embeds"], call["negative_prompt_embeds"]):
            v.append(branch(x, t, embeds))
        return v[1] + 4.0 * (v[0] - v[1])

    def loop():
        x = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
        for i in range(5):
            x = x - guided(x, 1000.0 - 200 * i) / 5
        return x

    prompts = call["prompt_embeds"], call["negative_prompt_embeds"]
    with torch.no_grad(), ditaccel.accelerated(transformer, REUSE):
        first, second = loop(), loop()
        assert torch.equal(first, second)
        assert torch.equal(first, plain_loop(transformer, *prompts))
        generations = {c.generation for c in ditaccel.report(transformer).calls}
    assert len(generations) == 3


def test_timesteps_that_coincide_in_half_precision_are_steps_by_the_latents():
    pipe, call = tiny_wan(layers=2)
    transformer = pipe.transformer
    scheduler = FlowMatchEulerDiscreteScheduler(shift=12.0)
    scheduler.set_timesteps(40)
    times = [float(t) for t in scheduler.timesteps]
    widths = scheduler.sigmas.diff().tolist()
    del scheduler
    assert len({float(torch.tensor(t).bfloat16()) for t in times}) < 40
    ditaccel.accelerate(transformer, REUSE)
    x = torch.randn(1, 4, 2, 8, 8)
    with torch.no_grad():
        for t, width in zip(times, widths, strict=True):
            for embeds in (call["prompt_embeds"], call["negative_prompt_embeds"]):
                v = transformer(x, torch.tensor([t]).bfloat16(), embeds)[0]
            x = x + width * v
    calls = ditaccel.report(transformer).calls
    assert [c.step for c in calls[::2]] == list(range(40))
    assert {c.branch for c in calls} == {"call0", "call1"}


def test_training_inside_of_accelerated_is_dense_and_said_once():
    pipe, call = tiny_wan(layers=2)
    transformer = pipe.transformer
    times = torch.tensor([900.0, 700.0, 650.0, 20.0])
    x = torch.randn(1, 4, 2, 8, 8)
    with torch.no_grad():
        dense = [transformer(x, t.expand(1), call["prompt_embeds"])[0] for t in times]
    ditaccel.accelerate(pipe, "reuse:interval=4")
    expected = generate(pipe, call)
    for t, want in zip(times, dense, strict=True):
        out = transformer(x, t.expand(1), call["prompt_embeds"])[0]
        assert torch.equal(out, want)
        out.sum().backward()
    assert sum("gradients" in line for line in ditaccel.report(pipe).warnings) == 1
    assert torch.equal(generate(pipe, call), expected)


@pytest.mark.filterwarnings("ignore:ditaccel")
def test_random_timesteps_get_no_forecasts_without_gradients_either():
    pipe, call = tiny_wan(layers=2)
    transformer = pipe.transformer
    ditaccel.accelerate(transformer, "reuse:interval=4")
    x, embeds = torch.randn(2, 4, 2, 8, 8), call["prompt_embeds"].expand(2, -1, -1)
    with torch.no_grad():
        for _ in range(5):
            transformer(x, torch.tensor([900.0, 300.0]), embeds)
        for t in torch.rand(100, generator=torch.Generator().manual_seed(0)) * 1000:
            transformer(x, t.expand(2), embeds)
    calls = ditaccel.report(transformer).calls
    assert {c.action for c in calls[:5]} == {"compute"}
    assert {c.action for c in calls[-60:]} == {"compute"}
    lines = ditaccel.report(transformer).warnings
    assert any("different timesteps" in line for line in lines)
    assert any("in no order" in line for line in lines)


@pytest.mark.parametrize("how", ["reversed", "anew", "anew, the rest"])
def test_loops_with_a_schedule_of_their_own_making_are_one_generation(how):
    pipe, call = tiny_wan(layers=2)
    scheduler = pipe.scheduler
    ditaccel.accelerate(pipe, "reuse:interval=2,warmup=2")
    scheduler.set_timesteps(8)
    all_times = scheduler.timesteps
    times = all_times.flip(0) if how == "reversed" else all_times
    x = torch.randn(1, 4, 2, 8, 8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for i, t in enumerate(times):
            if how == "anew":
                scheduler.set_timesteps(8)
            elif how != "reversed":
                scheduler.timesteps = all_times[i:].clone()
            pipe.transformer(x, t.expand(1), call["prompt_embeds"])
    calls = ditaccel.report(pipe).calls
    assert [(c.generation, c.step) for c in calls] == [(0, i) for i in range(8)]
    assert ditaccel.report(pipe).forecasts > 0


def test_a_bare_transformer_does_not_blame_a_scheduler():
    pipe, call = tiny_wan(layers=2)
    transformer, embeds = pipe.transformer, call["prompt_embeds"]
    del pipe
    ditaccel.accelerate(transformer, ADAPTIVE)
    x = torch.randn(1, 4, 2, 8, 8)
    with torch.no_grad(), pytest.warns(UserWarning, match="no scheduler is in sight"):
        transformer(x, torch.tensor([900.0]), embeds)


def test_a_bare_transformer_finds_the_scheduler_of_the_loop():
    """Presets work in loops of one's own: the scheduler is a local of theirs."""
    pipe, call = tiny_wan()
    expected = []
    for bare in (False, True):
        ditaccel.accelerate(pipe.transformer if bare else pipe, ADAPTIVE)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        expected.append(windows_loop(pipe, call, scheduler, 1))
        assert ditaccel.report(pipe).forecasts > 0
        ditaccel.restore(pipe)
    assert torch.equal(*expected)
