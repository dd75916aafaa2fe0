"""The report: short, timed, and with causes as data; what it says to do fits the cause."""

import json
import sys
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from tiny import generate, tiny_dit, tiny_flux, tiny_wan, tiny_wan22

import ditaccel
from ditaccel.caching.engine import gate
from ditaccel.config import AccelerationConfig
from ditaccel.core.reasons import Reason, advice
from ditaccel.core.stopwatch import Stopwatch
from ditaccel.reports.data import CallRecord, Timing
from ditaccel.reports.journal import Journal
from ditaccel.reports.text import LINES

SPARSE = "svg2:min_tokens=0,dense_steps=0,top_p=0.5,break_even=1"
SPECS = [
    "balanced",
    "confidence_gated_taylor:threshold=1e9",
    "taylorseer:interval=3",
    SPARSE,
    f"reuse:interval=2 & {SPARSE}",
]


@pytest.mark.parametrize("make", [tiny_dit, tiny_wan, tiny_wan22, tiny_flux])
@pytest.mark.parametrize("spec", SPECS)
def test_it_is_short_and_details_are_there(make, spec):
    pipe, call = make()
    with ditaccel.accelerated(pipe, spec):
        generate(pipe, call, num_inference_steps=40)
        report = ditaccel.report(pipe)
    text, html = str(report), report._repr_html_()
    assert len(text.splitlines()) <= LINES and repr(report) == text
    assert len(html) < 6000 and "<script" not in html
    assert len(report.details()) >= len(text) - 200
    assert ("dark computed, light forecast" in html) is ("cache" in report.config)
    for word in (report.family, "transformer calls"):
        assert word in text and word in html
    assert json.loads(report.to_json())["calls"][0]["cause"] == report.calls[0].cause.value


def test_it_is_short_whatever_happened():
    many = CallRecord(0, 0, "b", "transformer", 1.0, None, "compute", "x", None, 1, 1, 1.0)
    journal = Journal("wan", "reuse", {"cache": {"method": "reuse"}})
    for step in range(500):
        for branch in range(9):
            journal.add(replace(many, step=step, branch=f"<b{branch}>", cause=Reason.SCHEDULED))
    journal.warnings += [f"<script>{i}" for i in range(40)]
    journal.assumed += [f"a{i}" for i in range(40)]
    report = journal.report()
    text, html = str(report), report._repr_html_()
    assert len(text.splitlines()) <= LINES and max(map(len, text.splitlines())) < 250
    assert "(and 3 more branches)" in text and "Warning: <script>39" in text
    assert "details()" in text and len(report.details().splitlines()) > 80
    assert "<script" not in html and "<b0>" not in html and len(html) < 6000


def test_calls_are_timed_and_an_estimate_is_made_from_them():
    pipe, call = tiny_wan()
    with ditaccel.accelerated(pipe, "taylorseer:interval=3,granularity=last_block,target=output"):
        generate(pipe, call)
        report = ditaccel.report(pipe)
    assert all(c.seconds > 0 for c in report.calls)
    timing = report.timing
    assert timing.calls == report.total_calls
    assert timing.seconds == pytest.approx(sum(c.seconds for c in report.calls))
    assert timing.speedup > 1, "no block runs on a forecast step"
    assert "per computed call" in str(report) and f"{timing.speedup:.2f}x as fast" in str(report)


def calls_with(*seconds):
    made = CallRecord(0, 0, "b", "t", 1.0, None, "compute", "", None, 1, 1, 1.0)
    for action, value in seconds:
        yield replace(made, action=action, seconds=value)


def test_the_estimate_by_hand():
    """Ten calls of 2 s would take 20 s; a first call that compiles does not count as usual."""
    found = Timing.of(
        calls_with(("compute", 100.0), *[("compute", 2.0)] * 3, *[("forecast", 0.5)] * 6)
    )
    assert found.speedup == pytest.approx(20 / (4 * 2 + 6 * 0.5))
    assert (found.computed, found.forecast, found.seconds) == (2.0, 0.5, 109.0)
    assert Timing.of(calls_with(("compute", 1.0))).speedup is None
    assert Timing.of(calls_with(("compute", None))) is None


def test_times_of_calls_that_are_forgotten_are_no_trouble(monkeypatch):
    monkeypatch.setattr("ditaccel.reports.journal.MAX_CALLS", 10)
    monkeypatch.setattr("ditaccel.reports.journal._UNREAD", 3)
    journal = Journal("wan", "reuse", {"cache": {"method": "reuse"}})
    for record in calls_with(*[("compute", None)] * 25):
        watch = Stopwatch.at(())
        journal.add(record)
        journal.time(watch)
    assert journal.report().total_calls == 25
    assert all(c.seconds is not None for c in journal.report().calls)


@pytest.mark.parametrize("make", [tiny_wan, tiny_flux])
@pytest.mark.parametrize("guidance", ["independent", "follow", "difference"])
def test_causes_are_those_of_the_steps_whatever_branches_do(make, guidance):
    pipe, call = make()
    spec = f"adaptive_taylor:tolerance=0,warmup=4,final=1,guidance={guidance}"
    with ditaccel.accelerated(pipe, spec):
        generate(pipe, call, num_inference_steps=6)
        report = ditaccel.report(pipe)
    assert report.causes == {
        ("compute", Reason.WARM_UP): 4,
        ("compute", Reason.GAP_REACHED): 1,
        ("compute", Reason.LAST_STEPS): 1,
    }
    assert "(mostly: gap reached). To skip steps, raise the tolerance" in report.verdict()
    assert "first branch" not in str(report)


@pytest.mark.parametrize(
    ("spec", "cause", "line"),
    [
        ("taylorseer:interval=1", Reason.SCHEDULED, "raise the interval"),
        ("confidence_gated_taylor:threshold=0", Reason.ABOVE_THRESHOLD, "raise the threshold"),
        ("step_mask:steps=[0,1,2,3,4,5,6,7]", Reason.IN_MASK, "leave steps out of the mask"),
        ("taylorseer:interval=3,warmup=9", Reason.WARM_UP, "a smaller warmup"),
    ],
)
def test_advice_fits_the_cause(spec, cause, line):
    pipe, call = tiny_dit()
    with ditaccel.accelerated(pipe, spec):
        generate(pipe, call)
        report = ditaccel.report(pipe)
    assert f"(mostly: {cause.value})" in report.verdict() and line in report.verdict()


def test_no_decision_is_taken_from_words():
    """Whoever polishes a reason must not change outputs."""
    pipe, call = tiny_wan()
    spec = "adaptive_taylor:tolerance=1e9,guidance=difference,guidance_interval=3"
    with ditaccel.accelerated(pipe, spec):
        expected = generate(pipe, call, num_inference_steps=12)
    said = gate.Verdict.text
    try:
        gate.Verdict.text = property(lambda self: "other words")
        with ditaccel.accelerated(pipe, spec):
            assert (generate(pipe, call, num_inference_steps=12) == expected).all()
            assert {c.reason for c in ditaccel.report(pipe).calls} == {"other words"}
    finally:
        gate.Verdict.text = said


def test_every_reason_has_words_and_what_computes_has_advice():
    assert len({r.value for r in Reason}) == len(Reason)
    experts = {Reason.FIRST_OF_EXPERT, Reason.LAST_OF_EXPERT}
    assert {r for r in Reason if r.forced} == {Reason.WARM_UP, Reason.LAST_STEPS} | experts
    assert all(advice(r) for r in Reason)
    assert all(advice(r) != advice(Reason.OTHER) for r in Reason if r.forced)


def test_a_config_of_a_report_can_be_read_back():
    pipe, _ = tiny_wan()
    config = AccelerationConfig(cache=ditaccel.StepMaskConfig(steps=(0, 1)), label="mine")
    with ditaccel.accelerated(pipe, config):
        report = ditaccel.report(pipe)
    assert ditaccel.config.from_dict(json.loads(report.to_json())["config"]) == config


def test_calls_of_no_loop_have_their_own_cause():
    pipe, _ = tiny_wan()
    ditaccel.accelerate(pipe.transformer, "reuse:interval=2")
    with torch.no_grad():
        pipe.transformer(
            torch.randn(2, 4, 2, 8, 8), torch.tensor([9.0, 3.0]), torch.randn(2, 6, 16)
        )
    report = ditaccel.report(pipe.transformer)
    assert {c.cause for c in report.calls} == {Reason.NO_LOOP}
    assert "no caching method" not in report.verdict() and "step by step" in report.verdict()


def test_it_is_a_value_that_later_runs_do_not_change():
    pipe, call = tiny_dit()
    spec = f"reuse:interval=2 & {SPARSE}"
    ditaccel.accelerate(pipe, spec)
    generate(pipe, call)
    first = ditaccel.report(pipe)
    before = (str(first), first.details(), first.to_json(), first._repr_html_())
    generate(pipe, call, seed=1, num_inference_steps=5)
    second = ditaccel.report(pipe)
    ditaccel.restore(pipe)
    assert (str(first), first.details(), first.to_json(), first._repr_html_()) == before
    for one, other in ((first, second), (second, second.last_generation())):
        for field in ("config", "filled", "memory"):
            assert getattr(one, field) is not getattr(other, field)
        assert one.attention[0] is not other.attention[0]
        assert one.attention[0].records is not other.attention[0].records
    second.config["cache"]["interval"] = 99
    assert ditaccel.report(pipe).config["cache"]["interval"] == 2
    with pytest.raises(FrozenInstanceError):
        first.forecasts = 0


def test_a_table_of_its_calls_for_pandas(monkeypatch):
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe, "reuse:interval=2")
    generate(pipe, call)
    report = ditaccel.report(pipe)
    pandas = pytest.importorskip("pandas")
    table = report.to_pandas()
    assert isinstance(table, pandas.DataFrame) and len(table) == report.total_calls
    assert (table.action == "forecast").sum() == report.forecasts
    assert set(table.cause) == {c.cause.value for c in report.calls}
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ditaccel.UsageError, match=r"pip install pandas, or use to_dict\(\)$"):
        report.to_pandas()
