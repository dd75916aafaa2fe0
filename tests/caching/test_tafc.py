"""TAFC: decisions and payload by the published rule, worked out in float64 from the outside."""

import math
from statistics import median

import numpy as np
import pytest
import torch
from inspection import Watched, computed
from tiny import generate, tiny_wan, tiny_wan22

import ditaccel
from ditaccel.caching.tafc import Controller, figures

STEPS = 20


class ByTheRule:
    """One branch by the rule, in float64."""

    def __init__(self, threshold, max_cached, target=None):
        self.threshold, self.max_cached, self.target = threshold, max_cached, target
        self.residuals, self.times, self.steps = [], [], []
        self.before, self.after = [], []
        self.log_gain = self.integral = 0.0
        self.deviation = self.turned = None
        self.rate, self.seen_at = 0.0, -1
        self.vetoes = []

    def slope(self):
        (a, b), (s, t) = self.residuals[-2:], self.times[-2:]
        return (b - a) / abs(t - s)

    def turning(self):
        a, b = self.residuals[-2:]
        length = abs(np.linalg.norm(b) - np.linalg.norm(a)) / np.linalg.norm(a)
        cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
        return length + 2.0 * (1.0 - cosine)

    def wants_to_compute(self, step, time):
        progress, curved = step / (STEPS - 1), self.turning()
        last = self.steps[-1]
        if last != self.seen_at:
            if self.turned is not None:
                self.rate = (curved - self.turned) / self.turned / (last - self.seen_at)
            self.turned, self.seen_at = curved, last
        brake = max(0.3, 1.0 / (1.0 + 2.0 * max(0.0, self.rate)))
        gain = math.exp(self.log_gain)
        size = np.abs(self.residuals[-1]).mean()
        estimate = np.abs(self.slope()).mean() * abs(time - self.times[-1]) / size
        if estimate > median(self.before[-8:]) * 3.0 * gain * brake:
            self.vetoes.append("budget")
        elif curved >= self.threshold * (0.7 + 1.3 * progress) * gain * brake:
            self.vetoes.append("curvature")
        elif step - last - 1 >= 1.0 + self.max_cached * progress:
            self.vetoes.append("run")
        else:
            return False
        return True

    def forecast(self, time):
        return self.residuals[-1] + self.slope() * abs(time - self.times[-1])

    def computed(self, step, time, residual):
        if len(self.residuals) > 1:
            error = np.abs(residual - self.forecast(time)).mean() / np.abs(residual).mean()
            gap = step - self.steps[-1]
            if step < 3 and gap == 1:
                moved = np.abs(self.slope()).mean() * abs(time - self.times[-1])
                self.before.append(moved / np.abs(self.residuals[-1]).mean())
                self.after.append(error)
            elif gap > 1:
                self.steer(error)
        self.residuals.append(residual)
        self.times.append(time)
        self.steps.append(step)

    def steer(self, error):
        deviation = math.log((self.target or 2.5 * median(self.after[-8:])) / error)
        change = 0.0 if self.deviation is None else deviation - self.deviation
        integral = self.integral + deviation
        log_gain = self.log_gain + 0.4 * deviation + 0.05 * integral + 0.2 * change
        self.log_gain = min(max(log_gain, math.log(0.3)), math.log(3.0))
        if self.log_gain == log_gain:
            self.integral = min(max(integral, -2.0), 2.0)
        self.deviation = deviation


def run(guidance_scale=1.0, **options):
    """The calls, and what enters the blocks and leaves them."""
    pipe, call = tiny_wan()
    plain = Watched()
    plain.inputs("entered", pipe.transformer.blocks[0], "hidden_states")
    plain.inputs("end", pipe.transformer.norm_out, "x")
    entered = []
    pipe.transformer.patch_embedding.register_forward_hook(
        lambda module, args, output: entered.append(output.flatten(2).transpose(1, 2).clone())
    )
    with ditaccel.accelerated(pipe, cache=ditaccel.TAFCConfig(**options)):
        generate(pipe, call, num_inference_steps=STEPS, guidance_scale=guidance_scale)
        calls = ditaccel.report(pipe).calls
    as_arrays = [[each.double().numpy() for each in seen] for seen in (entered, plain.seen["end"])]
    return calls, *as_arrays, pipe.scheduler.timesteps.double().tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.05},
        {"threshold": 0.12},
        {"threshold": 1.0, "max_cached": 1.0},
        {"threshold": 0.2, "target_error": 0.01},
    ],
)
def test_decisions_and_forecasts_are_the_published_ones(options):
    calls, entered, end, times = run(**options)
    rule = ByTheRule(
        options["threshold"], options.get("max_cached", 6.0), options.get("target_error")
    )
    for step, (call, time) in enumerate(zip(calls, times, strict=True)):
        forced = step < 3 or step == STEPS - 1
        computes = forced or rule.wants_to_compute(step, time)
        assert (call.action == "compute") == computes, (step, call, rule.vetoes)
        if computes:
            rule.computed(step, time, end[step] - entered[step])
            continue
        expected = entered[step] + rule.forecast(time)
        np.testing.assert_allclose(end[step], expected, rtol=2e-3, atol=2e-4)
    assert 4 < len(rule.steps) < STEPS


def test_where_one_branch_wants_to_be_computed_all_are():
    calls, entered, end, times = run(guidance_scale=3.0, threshold=0.08)
    rules = [ByTheRule(0.08, 6.0) for _ in range(2)]
    disagreed = 0
    for step, time in enumerate(times):
        pair = calls[2 * step : 2 * step + 2]
        forced = step < 3 or step == STEPS - 1
        votes = [forced or rule.wants_to_compute(step, time) for rule in rules]
        disagreed += votes[0] != votes[1]
        assert {c.action == "compute" for c in pair} == {any(votes)}, step
        if any(votes):
            for index, rule in enumerate(rules):
                at = 2 * step + index
                rule.computed(step, time, end[at] - entered[at])
    assert disagreed > 0


def test_generations_begin_anew_and_a_second_expert_too():
    pipe, call = tiny_wan22()
    call["num_inference_steps"] = 20
    with ditaccel.accelerated(pipe, cache=ditaccel.TAFCConfig(threshold=1e9)):
        first = generate(pipe, call)
        steps = computed(pipe, "cond")
        assert torch.equal(generate(pipe, call), first) and computed(pipe, "cond") == steps
        calls = [c for c in ditaccel.report(pipe).last_generation().calls if c.branch == "cond"]
    second = [c for c in calls if c.transformer == "transformer_2"]
    assert [c.action for c in second[:2]] == ["compute", "compute"]
    assert "forecast" in {c.action for c in second} and "forecast" in {c.action for c in calls}


def test_curvature_by_hand():
    """(3, 4) to (8, 6): lengths 5 and 10, cosine 48/50; the other sample stays."""
    before = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    after = torch.tensor([[8.0, 6.0], [1.0, 0.0]])
    turned = figures([after, before])[2]
    assert turned == pytest.approx((1.0 + 2.0 * 0.04) / 2, rel=1e-5)


def test_the_gain_by_hand():
    """Target 2.5 x 0.02; 0.1 is twice as much: log G = 0.45 log 0.5, then back, then clamped."""
    loop = Controller()
    loop.calibrate(0.3, 0.02)
    assert loop.budget == pytest.approx(0.9)
    loop.measure(0.1)
    low = math.log(0.5)
    assert math.log(loop.gain) == pytest.approx(0.45 * low)
    loop.measure(0.05)
    # deviation 0, sum -log 2, change +log 2
    assert math.log(loop.gain) == pytest.approx(0.45 * low + 0.05 * low - 0.2 * low)
    for _ in range(9):
        loop.measure(1e-6)
    assert loop.gain == pytest.approx(3.0)
    loop.measure(float("nan"))
    assert loop.gain == pytest.approx(3.0)


def test_a_loop_of_unknown_length_is_refused_in_one_line():
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe.transformer, cache=ditaccel.TAFCConfig())
    latents = torch.zeros(1, pipe.transformer.config.in_channels, 2, 4, 4)
    text = call["prompt_embeds"]
    with torch.no_grad(), pytest.raises(ditaccel.ConfigError, match="number of steps is not known"):
        pipe.transformer(latents, torch.tensor([999.0]), text)
