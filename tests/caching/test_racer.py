"""In the manner of RACER: weights, trust and repayment by hand; as many steps as scheduled."""

import math

import numpy as np
import pytest
import torch
from inspection import Watched, computed
from tiny import generate, tiny_wan

import ditaccel
from ditaccel.caching.racer import (
    DisagreementGate,
    chebyshev_weights,
    repaid,
    windows,
)

STEPS = 24


def polynomials(places, degree, total):
    """Chebyshev's polynomials by their other definition, on -1 to 1."""
    x = 2.0 * np.asarray(places, float) / total - 1.0
    return np.stack([np.cos(n * np.arccos(np.clip(x, -1, 1))) for n in range(degree + 1)], -1)


def test_the_base_forecast_is_a_ridge_regression():
    places, total, degree, ridge = [9.0, 7.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.0], 20, 4, 1e-3
    values = np.random.default_rng(0).normal(size=(len(places), 5))
    design = polynomials(places, degree, total)
    normal = design.T @ design + ridge * np.eye(degree + 1)
    fitted = np.linalg.solve(normal, design.T @ values)
    expected = polynomials([11.0], degree, total) @ fitted
    weights = chebyshev_weights(places, 11.0, degree, ridge, total)
    np.testing.assert_allclose(np.asarray(weights) @ values, expected[0], rtol=1e-9)


def test_a_polynomial_is_forecast_exactly_without_a_ridge():
    places = [8.0, 6.0, 5.0, 3.0, 2.0, 1.0]
    values = [0.5 * p**3 - p + 2.0 for p in places]
    weights = chebyshev_weights(places, 10.0, 3, 1e-12, 20)
    assert np.dot(weights, values) == pytest.approx(0.5 * 1000 - 10 + 2, rel=1e-6)


def test_windows_grow_at_computed_steps():
    assert windows(16, 3, 2.0, 0.5) == [0, 1, 2, 4, 6, 9, 12]
    assert windows(8, 2, 1.0, 0.0) == list(range(8))
    assert windows(3, 7, 2.0, 0.0) == [0, 1, 2]


def test_the_step_that_leaves_the_shortest_gap_is_given_up():
    assert repaid(5, [8, 10, 13]) == 8  # 5-10; 8-13 is as long, and later
    assert repaid(5, [9, 10, 12]) == 10  # 9-12
    assert repaid(5, [9]) is None and repaid(5, []) is None


def test_trust_by_hand():
    gate = DisagreementGate(7, 2.0, 0.25, 4, 1e-3, 0.25, 0.9)
    assert gate.trusted(1, 0.25) == pytest.approx(0.5)
    assert gate.trusted(3, 0.05) == pytest.approx(math.exp(-0.6) / (1 + math.exp(-0.8)))


def run(**options):
    """The calls, and what leaves the blocks."""
    pipe, call = tiny_wan()
    plain = Watched()
    plain.inputs("end", pipe.transformer.norm_out, "x")
    with ditaccel.accelerated(pipe, cache=ditaccel.RACERConfig(**options)):
        generate(pipe, call, num_inference_steps=STEPS, guidance_scale=1.0)
        calls = ditaccel.report(pipe).calls
    return calls, [each.double().numpy() for each in plain.seen["end"]]


@pytest.mark.parametrize("risk", [1.0, 0.3])
def test_decisions_and_forecasts_follow_the_rule(risk):
    calls, end = run(window=3.0, growth=0.5, warmup=4, degree=2, risk=risk)
    base = windows(STEPS, 4, 3.0, 0.5)
    scheduled, seen, past = [s for s in base if s >= 4], [], []
    refreshed = 0
    for step, call in enumerate(calls):
        computes = step < 4 or (scheduled and scheduled[0] == step)
        if not computes:
            places = [p for p, _ in past][:10]
            values = np.stack([v for _, v in past][:10])
            weights = chebyshev_weights(places, step, 2, 1e-3, STEPS)
            h = np.tensordot(weights, values, 1)
            g = values[0] + (step - places[0]) / (places[0] - places[1]) * (values[0] - values[1])
            sample = (slice(None), slice(None, None, 16))
            r = np.linalg.norm((h - g)[sample]) / np.linalg.norm(h[sample])
            assert call.error == pytest.approx(r, rel=1e-3)
            later = repaid(step, scheduled)
            risky = len(seen) >= 3 and r > np.quantile(seen, risk)
            seen.append(r)
            if risky and later is not None:
                scheduled.remove(later)
                refreshed += 1
                computes = True
            else:
                k = math.exp(-0.3 * (step - places[0] - 1)) / (1 + math.exp(-4 * (0.25 - r)))
                expected = values[0] + k * (h - values[0])
                np.testing.assert_allclose(end[step], expected, rtol=1e-3, atol=1e-4)
        elif step >= 4:
            del scheduled[0]
        assert (call.action == "compute") == bool(computes), step
        if computes:
            past.insert(0, (step, end[step]))
    assert len(past) == len(base) and (refreshed > 0) == (risk < 1.0)


def test_each_branch_computes_as_many_steps_as_scheduled():
    pipe, call = tiny_wan()
    config = ditaccel.RACERConfig(window=2, growth=0.5, warmup=3, risk=0.3)
    with ditaccel.accelerated(pipe, cache=config):
        first = generate(pipe, call, num_inference_steps=STEPS)
        for branch in ("cond", "uncond"):
            steps = computed(pipe, branch)
            assert len(steps) == len(windows(STEPS, 3, 2.0, 0.5)), branch
            assert steps[-1] == windows(STEPS, 3, 2.0, 0.5)[-1]
        assert torch.equal(generate(pipe, call, num_inference_steps=STEPS), first)


def test_options_out_of_range_are_refused_in_one_line():
    for options, words in (
        ({"window": 0.5}, "window is 0.5"),
        ({"warmup": 1}, "two forecasts need 2 computed steps"),
        ({"degree": 10}, "give 1 to 9"),
        ({"risk": 1.5}, "it is a quantile"),
    ):
        with pytest.raises(ditaccel.ConfigError, match=words):
            ditaccel.RACERConfig(**options)
