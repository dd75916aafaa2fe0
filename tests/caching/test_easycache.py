"""EasyCache: its decisions and what it holds, compared with the published rule in float64."""

import pytest
import torch
from inspection import computed
from tiny import generate, tiny_flux, tiny_wan, tiny_wan22

import ditaccel
from ditaccel import EasyCacheConfig


def followed(pipe):
    """What the scheduler is given on each step: latents and outputs, float64."""
    latents, outputs = [], []
    inner = pipe.scheduler.step

    def step(output, time, sample, *args, **kwargs):
        latents.append(sample.double())
        outputs.append(output.double())
        return inner(output, time, sample, *args, **kwargs)

    pipe.scheduler.step = step
    return latents, outputs


def published_rule(latents, outputs, threshold, warmup):
    """Computed steps by the rule: k between computed steps, increments from step to step."""

    def size(x):
        return float(x.abs().mean())

    steps, rate, last, total = [], None, None, 0.0
    for i, x in enumerate(latents):
        skip = False
        if warmup <= i < len(latents) - 1 and rate is not None:
            total += rate * size(x - latents[i - 1]) / size(outputs[last])
            skip = total < threshold
        if skip:
            continue
        steps.append(i)
        total = 0.0
        if last is not None:
            rate = size(outputs[i] - outputs[last]) / size(x - latents[last])
        last = i
    return steps


@pytest.mark.parametrize("warmup", [1, 4])
@pytest.mark.parametrize(
    ("tiny", "alone", "threshold"),
    [
        (tiny_flux, {"true_cfg_scale": 1.0}, 0.15),
        (tiny_flux, {"true_cfg_scale": 1.0}, 0.4),
        (tiny_wan, {"guidance_scale": 1.0}, 0.5),
    ],
)
def test_decisions_and_payload_follow_the_published_rule(tiny, alone, threshold, warmup):
    pipe, call = tiny()
    latents, outputs = followed(pipe)
    config = EasyCacheConfig(threshold=threshold, warmup=warmup)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, {**call, **alone}, num_inference_steps=14)
        steps = computed(pipe)
        skipped = [c for c in ditaccel.report(pipe).calls if c.action == "forecast"]
    assert steps == published_rule(latents, outputs, threshold, warmup)
    assert max(warmup, 2) < len(steps) < 14
    assert {c.blocks_run for c in skipped} == {0}
    for i in set(range(14)) - set(steps):
        last = max(s for s in steps if s < i)
        held = latents[i] + (outputs[last] - latents[last])
        torch.testing.assert_close(outputs[i], held, rtol=0, atol=1e-5)


def test_numbers_worked_out_by_hand():
    """x = 8, 6, 5, 4.4; o = 4, 3 on the first two steps: k = 1 / 2."""
    from ditaccel.caching.easycache import RateGate
    from ditaccel.caching.engine.state import BranchState, Verdict
    from ditaccel.core.denoising.tracker import DenoisingStep
    from ditaccel.core.reasons import Reason

    gate = RateGate(threshold=0.25)
    state = BranchState(0, memory=gate.memory())
    done = Verdict(False, Reason.WARM_UP)
    for i, (x, o) in enumerate([(8.0, 4.0), (6.0, 3.0)]):
        state.samples, state.outputs = [torch.full((1, 2), x)], [torch.full((1, 2), o)]
        gate.finished(DenoisingStep(0, i, "cond", 0.0), state, done)
    assert float(state.memory.rate) == pytest.approx(0.5 / 3)
    errors = []
    for i, x in ((2, 5.0), (3, 4.4)):
        state.samples, state.outputs = [torch.full((1, 2), x)], []
        step = DenoisingStep(0, i, "cond", 0.0)
        verdict = gate.before(step, state)
        errors.append((verdict.forecast, verdict.error))
        if verdict.forecast:
            gate.finished(step, state, verdict)
    # .5 * 1 / 3 = 1/6, and then .5 * .6 / 3 = 1/10 more
    assert errors[0] == (True, pytest.approx(1 / 6))
    assert errors[1] == (False, pytest.approx(4 / 15))


def test_the_first_branch_decides_and_each_holds_its_own_difference():
    pipe, call = tiny_wan()
    with ditaccel.accelerated(pipe, cache=EasyCacheConfig(threshold=0.5, warmup=3)):
        generate(pipe, call, num_inference_steps=12)
        assert computed(pipe, "cond") == computed(pipe, "uncond") != list(range(12))
        last = [c for c in ditaccel.report(pipe).calls if c.step == 11]
        assert {c.action for c in last} == {"compute"}


def test_a_second_transformer_measures_the_rate_again():
    pipe, call = tiny_wan22()
    with ditaccel.accelerated(pipe, cache=EasyCacheConfig(threshold=1e9, warmup=2, final=0)):
        generate(pipe, call, num_inference_steps=30)
        calls = ditaccel.report(pipe).calls
    second = [c for c in calls if c.transformer == "transformer_2" and c.branch == "cond"]
    assert [c.action for c in second[:3]] == ["compute", "compute", "forecast"]


def test_no_state_outlives_its_generation():
    pipe, call = tiny_wan()
    with ditaccel.accelerated(pipe, cache=EasyCacheConfig(threshold=0.5, warmup=3)):
        first = generate(pipe, call, num_inference_steps=10)
        other = generate(pipe, call, seed=7, num_inference_steps=6)
        assert torch.equal(generate(pipe, call, num_inference_steps=10), first)
        assert torch.isfinite(other).all()
