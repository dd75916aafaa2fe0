"""Matched interpolation, dominance, and verdicts."""

import math

import pytest
from ditaccel.eval import pareto
from ditaccel.eval.pareto import Point, at_psnr, envelope, psnr_at


def point(name: str, speedup: float, psnr: float, role: str = "method", series: str = "s") -> Point:
    return Point(name, name, series, role, None, speedup, psnr, 1 / speedup)


def run(*points: Point):
    """configs and rows as `run.json` and `summary.json` hold them."""
    configs = [
        {"id": p.id, "label": p.label, "series": p.series, "role": p.role, "knob": None}
        for p in points
    ]
    rows = {
        p.id: {
            "speedup": {"median": p.speedup},
            "psnr": {"mean": p.psnr},
            "computed_share": p.share,
            "accuracy": {"colour": 1.0},
        }
        for p in points
    }
    return configs, rows


DENSE = point("dense", 1.0, 99.0, "dense")
OTHER = point("other", 1.0, 12.0, "other_seed")
FEWER = [
    point(f"{n} steps", 50 / n, psnr, "fewer_steps", "fewer steps")
    for n, psnr in ((25, 40.0), (10, 30.0))
]


def test_envelope_keeps_what_nothing_beats() -> None:
    a, b, c, d = point("a", 3, 20), point("b", 2, 30), point("c", 2, 25), point("d", 1.5, 28)
    assert [p.id for p in envelope([d, c, b, a])] == ["a", "b"]
    assert envelope([]) == []


def test_interpolation_is_linear_in_the_logarithm_of_speed() -> None:
    points = [point("fast", 4.0, 20.0), point("slow", 1.0, 40.0)]
    match = at_psnr(points, 30.0)
    assert match.speedup == pytest.approx(2.0)
    assert match.share == pytest.approx(0.5)
    assert at_psnr(points, 20.0).speedup == pytest.approx(4.0)
    assert at_psnr(points, 40.0).speedup == pytest.approx(1.0)
    found = psnr_at(points, 2.0)
    assert found is not None and found[0] == pytest.approx(30.0)


def test_nothing_is_extrapolated() -> None:
    points = [point("fast", 4.0, 26.0), point("slow", 2.0, 33.0)]
    above, below = at_psnr(points, 35.0), at_psnr(points, 25.0)
    assert above.speedup is None and "does not reach 35 dB" in above.note
    assert below.speedup is None and "x4.00 already at 26.0 dB" in below.note
    assert at_psnr([points[0]], 25.0).speedup is None
    assert at_psnr([], 25.0).note == "no points"
    assert psnr_at(points, 1.5) is None and psnr_at(points, 5.0) is None
    assert psnr_at([], 2.0) is None
    assert psnr_at(points, 4.1) == (26.0, "fast") and psnr_at(points, 1.95) == (33.0, "slow")


def test_a_wide_gap_is_named() -> None:
    match = at_psnr([point("a", 3.0, 20.0), point("b", 1.0, 60.0)], 30.0)
    assert "40 dB apart" in match.note


def test_matched_covers_every_series_and_level() -> None:
    rows = pareto.matched(*run(DENSE, OTHER, *FEWER, point("m", 3.0, 36.0)))
    assert {(r["series"], r["psnr"]) for r in rows} == {
        (series, level) for series in ("fewer steps", "s") for level in (25.0, 30.0, 35.0, 40.0)
    }
    at_35 = next(r for r in rows if r["series"] == "fewer steps" and r["psnr"] == 35.0)
    assert at_35["speedup"] == pytest.approx(math.sqrt(2.0 * 5.0))


def verdict(speedup: float, psnr: float, *fewer: Point) -> str:
    (line,) = pareto.verdicts(*run(DENSE, OTHER, *fewer, point("m", speedup, psnr)))
    return line


@pytest.mark.parametrize(
    ("speedup", "psnr", "words"),
    [
        (math.sqrt(10), 38.0, "3.0 dB better than fewer steps at the same time (35.0 dB"),
        (math.sqrt(10), 35.2, "no better than fewer steps"),
        (2.2, 30.0, "fewer steps would serve you better: 25 steps gives 40.0 dB"),
        (1.5, 35.0, "fewer steps would serve you better: 25 steps gives 40.0 dB at x2.00"),
        (1.5, 45.0, "5.0 dB better than the best that fewer steps gave (25 steps"),
        (6.0, 33.0, "faster than every fewer-steps row measured; better quality"),
        (6.0, 20.0, "faster than every fewer-steps row measured; worse quality"),
        (1.0, 99.0, "nothing was skipped"),
        (1.0, 60.0, "no faster than dense"),
        (4.0, 12.5, "as far from dense as another seed"),
    ],
)
def test_verdicts_in_plain_words(speedup: float, psnr: float, words: str) -> None:
    assert words in verdict(speedup, psnr, *FEWER)


def test_verdict_without_anything_to_compare() -> None:
    assert "no fewer-steps row" in verdict(2.0, 30.0)


def test_lost_prompt_accuracy_is_said() -> None:
    configs, rows = run(DENSE, *FEWER, point("m", 3.0, 38.0))
    rows["m"]["accuracy"]["colour"] = 0.6
    assert "colour 100% -> 60%" in pareto.verdicts(configs, rows)[0]


def test_dominance() -> None:
    configs, rows = run(DENSE, *FEWER, point("bad", 2.0, 20.0), point("good", 2.5, 45.0))
    assert pareto.dominated(configs, rows) == {
        "bad": "good",
        "25 steps": "good",
    }
