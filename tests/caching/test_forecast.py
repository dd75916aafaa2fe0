"""Forecasts: exact on what each basis is exact for, closed-form bias elsewhere."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditaccel.caching.engine.forecast import (
    BASES,
    History,
    combine,
    hermite_weights,
    newton_weights,
    relative_l1,
    taylor_weights,
)
from ditaccel.errors import ConfigError

X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(2, 3, 4)


def history(function, places, order, basis="taylor"):
    kept = History(order, basis)
    for place in places:
        kept.push(place, function(place))
    return kept


@pytest.mark.parametrize("basis", BASES)
def test_order_zero_reuses_bit_for_bit(basis):
    feature = torch.randn(2, 3)
    kept = History(0, basis)
    kept.push(0, torch.randn(2, 3))
    kept.push(3, feature)
    assert torch.equal(kept.forecast(7), feature)


@pytest.mark.parametrize("basis", ["taylor", "newton"])
@given(
    gaps=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    ahead=st.floats(0.5, 6),
)
def test_order_one_is_exact_on_lines_at_any_spacing(basis, gaps, ahead):
    places = [0.0]
    for gap in gaps:
        places.append(places[-1] + gap)
    kept = history(lambda t: 2 * X - 0.5 * X * t, places, 1, basis)
    target = places[-1] + ahead
    torch.testing.assert_close(kept.forecast(target), 2 * X - 0.5 * X * target)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_newton_is_exact_on_polynomials_of_its_order(order):
    places = [0.0, 1.0, 2.5, 4.0, 7.0][: order + 1]
    kept = history(lambda t: X + X**2 * t**order - t, places, order, "newton")
    target = places[-1] + 2
    torch.testing.assert_close(
        kept.forecast(target), X + X**2 * target**order - target, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("gap", [1, 2, 5])
@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_taylorseer_recursion_has_its_published_bias_on_parabolas(gap, ahead):
    # D1 at the newest node is a backward difference: late by gap/2, so short by ahead*gap*f''/2.
    places = [0.0, gap, 2.0 * gap]
    kept = history(lambda t: X * t * t, places, 2)
    target = places[-1] + ahead
    torch.testing.assert_close(X * target**2 - kept.forecast(target), X * ahead * gap)


def test_taylor_order_two_equals_the_recursion_written_out():
    f = [torch.randn(5, dtype=torch.float64) for _ in range(3)]
    p = [0.0, 2.0, 5.0]
    d1_old, d1 = (f[1] - f[0]) / 2, (f[2] - f[1]) / 3
    d2 = (d1 - d1_old) / 3
    kept = History(2)
    for place, feature in zip(p, f, strict=True):
        kept.push(place, feature)
    torch.testing.assert_close(kept.forecast(9.0), f[2] + 4 * d1 + 8 * d2)


def test_hermite_is_a_contracted_line_at_order_one():
    taylor, hermite = taylor_weights([4, 2], 7, 1), hermite_weights([4, 2], 7, 1)
    assert hermite[1] == pytest.approx(0.5 * taylor[1])


@given(st.integers(0, 4), st.floats(0.1, 9))
def test_weights_keep_constants(order, ahead):
    places = [9.0, 7.0, 4.0, 3.0, 1.0]
    for rule in (taylor_weights, newton_weights):
        assert sum(rule(places, 9 + ahead, order)) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("rate", [-0.3, -0.05, 0.2])
def test_exponential_is_exact_on_exponentials(rate):
    kept = history(lambda t: 3 + X * math.exp(rate * t), [0.0, 1.0, 2.0], 1, "exponential")
    line = history(lambda t: 3 + X * math.exp(rate * t), [0.0, 1.0, 2.0], 1)
    actual = 3 + X * math.exp(rate * 6)
    error = (kept.forecast(6.0) - actual).abs().max()
    assert error < 0.05 * (line.forecast(6.0) - actual).abs().max()


def test_auto_finds_the_basis_that_fits():
    decay = History(1, "auto")
    for t in range(8):
        decay.push(t, X * math.exp(-0.4 * t))
    assert decay.chosen == "exponential"
    cubic = History(3, "auto")
    for t in range(8):
        cubic.push(t, X + 0.1 * X * t**3)
    assert cubic.chosen == "newton"


def test_orders_fill_one_per_computed_step():
    kept = History(2)
    kept.push(0, X)
    assert torch.equal(kept.forecast(3), X)
    kept.push(1, 2 * X)
    torch.testing.assert_close(kept.forecast(3), 4 * X)
    assert len(kept) == 2


def test_history_survives_a_kernel_that_writes_in_place():
    feature = torch.ones(3)
    kept = History(1)
    kept.push(0, feature)
    feature.zero_()
    assert torch.equal(kept.newest, torch.ones(3))


def test_history_keeps_order_plus_one_features():
    kept = History(2)
    for t in range(7):
        kept.push(t, torch.zeros(4, dtype=torch.float32))
    assert len(kept) == 3 and kept.nbytes == 3 * 4 * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_wide(dtype):
    snapshots = [torch.randn(1000).to(dtype) for _ in range(4)]
    weights = [4.0, -6.0, 4.0, -1.0]
    exact = sum(w * s.double() for w, s in zip(weights, snapshots, strict=True))
    error = (combine(snapshots, weights).double() - exact).abs().max()
    assert error <= torch.finfo(dtype).eps * exact.abs().max()


def test_relative_l1_per_sample_shows_the_worst():
    actual = torch.ones(4, 10)
    forecast = actual.clone()
    forecast[2] += 1
    assert float(relative_l1(forecast, actual)) == pytest.approx(0.25)
    assert relative_l1(forecast, actual, per_sample=True).tolist() == [0, 0, 1, 0]


def test_bad_options_are_named():
    with pytest.raises(ConfigError, match="order is -1"):
        History(-1)
    with pytest.raises(ConfigError, match="unknown basis 'fourier'"):
        History(1, "fourier")
