"""What the report says of quality: a PSNR with an interval, or why there is none."""

from __future__ import annotations

import pytest
import torch
from tiny import generate, tiny_dit, tiny_flux

import ditaccel
from ditaccel.core.denoising.leftover import Leftover
from ditaccel.reports.expectation import CEILING, Calibration

LINE = Calibration(level=10.0, slope=20.0, low=-6.0, high=4.0)


def test_ten_times_the_error_costs_the_slope():
    expected = LINE.expect(0.01)
    assert (expected.psnr, expected.low, expected.high) == pytest.approx((50.0, 44.0, 54.0))
    assert LINE.expect(0.001).psnr == pytest.approx(CEILING)
    assert str(expected) == "about 50 dB (44 to 54 in 80 % of runs) against dense"


def test_early_gaps_count_more_and_the_worst_branch_decides():
    left = Leftover()
    for branch, error in (("cond", 0.1), ("uncond", 0.3)):
        left.forecast(("transformer", branch))
        left.gap_ended(("transformer", branch), torch.tensor(error), began=0, total=10)
        left.gap_ended(("transformer", branch), error, began=5, total=10)
    assert left.value == pytest.approx(0.3 + 0.3 / 4)
    left.gap_ended(("transformer_2", "cond"), 4.0, began=5, total=10)
    assert left.value == pytest.approx(0.1 + 0.1 / 4 + 1.0)


def test_forecasts_that_no_computed_step_ends_leave_it_open():
    left = Leftover()
    left.forecast(("transformer", "cond"))
    assert left.value is None
    left.gap_ended(("transformer", "cond"), 0.1, began=0, total=None)
    assert left.value is None


@pytest.mark.parametrize(
    "spec",
    [
        "adaptive_taylor:tolerance=1e9,warmup=2",
        "taylorseer:interval=2,granularity=last_block,target=output,correction=auto,final=1",
    ],
)
@pytest.mark.parametrize("tiny", [tiny_flux, tiny_dit])
def test_a_measured_error_becomes_an_expected_psnr(tiny, spec):
    pipe, call = tiny()
    with ditaccel.accelerated(pipe, spec):
        generate(pipe, call)
        report = ditaccel.report(pipe)
        assert report.left and report.forecasts and report.expected is not None
        assert f"Quality: expect {report.expected}; calibrated on the shipped samples" in str(
            report
        )
        assert report.last_generation().to_dict()["left"] == report.left


@pytest.mark.parametrize(
    "spec", ["taylorseer:interval=2", "reuse:interval=2", "confidence_gated_taylor:threshold=1e9"]
)
def test_no_figure_where_nothing_measures_the_error(spec):
    pipe, call = tiny_flux()
    with ditaccel.accelerated(pipe, spec):
        generate(pipe, call)
        report = ditaccel.report(pipe)
        assert report.forecasts and report.expected is None
        assert "Quality: not estimated: the error of these forecasts is not measured" in str(report)


def test_no_figure_where_nothing_was_forecast():
    pipe, call = tiny_flux()
    with ditaccel.accelerated(pipe, "adaptive_taylor:tolerance=0"):
        generate(pipe, call)
        assert "Quality" not in str(ditaccel.report(pipe)) and ditaccel.report(pipe).left == 0.0
