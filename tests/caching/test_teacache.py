"""TeaCache: decisions compared with the published rule in float64, and fits to dense runs."""

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from inspection import Watched, computed
from tiny import FAMILIES, generate, tiny_flux, tiny_wan

import ditaccel
from ditaccel import ConfigError, TeaCacheConfig
from ditaccel import config as configs
from ditaccel.caching.teacache import POLYNOMIALS, Published, polynomial_through, value_at

# a fold that keeps sums within reach of a threshold on random weights
OWN = (-2.0, 1.0, 0.02)


def published_rule(signals, polynomial, threshold, warmup=1, final=1):
    """Computed steps: what is added up is the polynomial of the change since the step before."""
    steps, total = [], 0.0
    for i, now in enumerate(signals):
        if warmup <= i < len(signals) - final:
            before = signals[i - 1]
            total += np.polyval(polynomial, np.abs(now - before).mean() / np.abs(before).mean())
            if total < threshold:
                continue
        steps.append(i)
        total = 0.0
    return steps


@pytest.mark.parametrize("threshold", [0.1, 0.3])
def test_decisions_follow_the_published_rule(threshold):
    pipe, call = tiny_flux()
    plain = Watched()
    plain.outputs("norm", pipe.transformer.transformer_blocks[0].norm1)
    plain.inputs("end", pipe.transformer.norm_out, "x")
    plain.outputs("in", pipe.transformer.x_embedder)
    with ditaccel.accelerated(pipe, cache=TeaCacheConfig(threshold=threshold, polynomial=OWN)):
        generate(pipe, call, true_cfg_scale=1.0, num_inference_steps=14)
        steps = computed(pipe)
    seen = plain.seen["norm"]  # (of a step that is computed after all, twice: asked and run)
    once = [b for a, b in pairwise([torch.zeros(1), *seen]) if not torch.equal(a, b)]
    signals = [x.double().numpy() for x in once]
    assert steps == published_rule(signals, OWN, threshold) and 2 < len(steps) < 14
    for i in set(range(14)) - set(steps):  # the residual of the last computed step is held
        last = max(s for s in steps if s < i)
        pairs = zip(plain.seen["end"], plain.seen["in"], strict=True)
        residual = [end.double() - x.double() for end, x in pairs]
        torch.testing.assert_close(residual[i], residual[last], rtol=0, atol=1e-5)


def test_the_embedding_decides_for_wan_as_published():
    """The projected embedding, 5 steps first, and the last one not forced."""
    pipe, call = tiny_wan()
    plain = Watched()
    plain.outputs("time", pipe.transformer.condition_embedder.time_proj)
    config = configs.preset("published:teacache", "wan").cache
    assert config.polynomial == "wan_1.3b" and config.signal == "embedding"
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, guidance_scale=1.0, num_inference_steps=20)
        steps = computed(pipe)
    signals = [x.double().numpy() for x in plain.seen["time"]]
    coefficients = POLYNOMIALS["wan_1.3b"][1]
    assert steps == published_rule(signals, coefficients, config.threshold, 5, 0)


def test_a_polynomial_below_0_skips_nothing_at_threshold_0():
    pipe, call = tiny_flux()
    dense = generate(pipe, call)
    with ditaccel.accelerated(pipe, cache=TeaCacheConfig(threshold=0, polynomial=(-1.0, 0.0))):
        assert torch.equal(generate(pipe, call), dense)


def test_published_polynomials_at_a_point():
    """Worked out by hand: 498.65 .1^4 - 283.78 .1^3 + 55.855 .1^2 - 3.8202 .1 + .26423."""
    value = 0.049865 - 0.28378 + 0.55855 - 0.38202 + 0.26423
    assert value_at(POLYNOMIALS["flux"][1], 0.1) == pytest.approx(value, abs=1e-4)


def test_each_polynomial_has_a_name_of_the_option():
    assert set(POLYNOMIALS) == set(get_args(Published))


@pytest.mark.parametrize("family", TeaCacheConfig.published)
def test_published_settings_run(family):
    pipe, call = FAMILIES[family]()
    with ditaccel.accelerated(pipe, "published:teacache:threshold=1e9,warmup=1"):
        assert torch.isfinite(generate(pipe, call, num_inference_steps=4)).all()
        assert ditaccel.report(pipe).forecasts


def test_a_wrong_name_or_signal_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="did you mean 'flux'"):
        TeaCacheConfig(polynomial="flux2")
    with pytest.raises(ConfigError, match="was fitted to the embedding; give signal=embedding"):
        TeaCacheConfig(polynomial="hidream")


def test_a_polynomial_is_found_again():
    x = np.linspace(0.01, 0.3, 40)
    coefficients = (30.0, -12.0, 2.5, 0.4, 0.01)
    found, r2 = polynomial_through(list(zip(x, np.polyval(coefficients, x), strict=True)))
    assert found == pytest.approx(coefficients, rel=1e-6) and r2 == pytest.approx(1.0)
    noise = np.random.default_rng(0).normal(size=400)
    _, r2 = polynomial_through(list(zip(np.linspace(0, 1, 400), noise, strict=True)))
    assert 0 <= r2 < 0.05
    assert len(polynomial_through([(0.1, 0.2), (0.3, 0.4)])[0]) == 2  # a line through two


def test_a_fitted_polynomial_is_positive_next_to_what_it_was_fitted_to():
    """Else a run with larger inputs than those of the fit would skip all that is left of it."""
    x = np.linspace(0.01, 0.1, 40)
    for y in (0.3 - 20 * (x - 0.05) ** 2, 0.1 - 2 * (x - 0.02), 0.02 + 30 * x**3 - 900 * x**4):
        found, _ = polynomial_through(list(zip(x, y, strict=True)))
        assert all(value_at(found, at) > 0 for at in np.linspace(1e-3, 0.2, 50))
    falls, _ = polynomial_through([(0.1, 0.4), (0.2, 0.1)])  # a multiple of the input is left
    assert falls == (pytest.approx(1.2), 0.0)


def test_it_is_fitted_to_dense_runs():
    """Compared with NumPy's fit to the changes that plain hooks see."""
    pipe, call = tiny_flux()
    call = {**call, "true_cfg_scale": 1.0, "num_inference_steps": 12}
    plain = Watched()
    plain.outputs("norm", pipe.transformer.transformer_blocks[0].norm1)
    plain.outputs("out", pipe.transformer)
    generate(pipe, call, seed=1000)
    plain.remove()

    def changes(values):
        return [float((b - a).abs().mean() / a.abs().mean()) for a, b in pairwise(values)]

    x, y = (changes([v.double() for v in plain.seen[key]]) for key in ("norm", "out"))
    lines = []
    config = ditaccel.fit(pipe, TeaCacheConfig(), [call], progress=lines.append)
    beyond = np.linspace(0, 2 * max(x), 257)[1:]
    fits = (np.polyfit(x, y, degree) for degree in (4, 3, 2, 1))
    through_zero = np.array([np.dot(x, y) / np.dot(x, x), 0.0])
    taken = next((fit for fit in fits if np.polyval(fit, beyond).min() > 0), through_zero)
    expected = np.polyval(taken, x)
    assert [value_at(config.polynomial, v) for v in x] == pytest.approx(expected, abs=1e-3)
    left = np.square(expected - y).sum() / np.square(np.array(y) - np.mean(y)).sum()
    assert lines[-1] == f"R2 {1 - left:.2f} over 11 pairs of steps"


def test_an_input_that_tells_nothing_is_warned_of():
    from ditaccel.caching.teacache import InputRecorder

    seen = InputRecorder("modulated")
    rng = np.random.default_rng(0)
    for i in range(200):
        seen.seen["cond"][i].append((float(rng.uniform()), float(rng.uniform())))
    found = TeaCacheConfig().fitted(seen)
    assert "hardly predicts" in found.warnings[0] and "R2 0.0" in found.notes[0]
    with pytest.raises(ConfigError, match="too few steps"):
        TeaCacheConfig().fitted(InputRecorder("modulated"))


def test_a_transformer_without_what_it_looks_at_is_refused_in_one_line():
    pipe, _ = FAMILIES["qwen_image"]()
    with pytest.raises(ditaccel.UnsupportedError, match="modulated input") as caught:
        ditaccel.accelerate(pipe, cache=TeaCacheConfig())
    assert "\n" not in str(caught.value)
    pipe, _ = tiny_wan()
    with pytest.raises(ConfigError, match="nothing to be measured; give one of: MagCacheConfig"):
        ditaccel.fit(pipe, ditaccel.EasyCacheConfig(), "a cat")
