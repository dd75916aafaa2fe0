"""Matched interpolation, dominance, and verdicts."""

import math
from dataclasses import replace

import pytest
from ditaccel.eval.measure.pairs import State
from ditaccel.eval.specs import Role, RunConfig
from ditaccel.eval.summary import pareto
from ditaccel.eval.summary.pareto import Point, Where, at_psnr, envelope, psnr_at
from ditaccel.eval.summary.verdicts import Basis, Kind, Level, Missing, Verdict, headline, verdicts


def point(name: str, speedup: float, psnr: float, role: str = "method", series: str = "s") -> Point:
    return Point(RunConfig(name, name, series, Role(role), name), speedup, psnr, 1 / speedup)


def rows_of(*points: Point):
    """Rows as `summary.json` holds them."""
    return {p.id: {"accuracy": {"colour": 1.0}} for p in points}


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
    assert (above.where, below.where) == (Where.BELOW, Where.ABOVE)
    assert above.speedup is None and "does not reach 35 dB" in above.note
    assert below.speedup is None and "4.00× already at 26.0 dB" in below.note
    assert at_psnr([points[0]], 25.0).speedup is None
    assert at_psnr([], 25.0).note == "no points"
    assert psnr_at(points, 1.5) is None and psnr_at(points, 5.0) is None
    assert psnr_at([], 2.0) is None
    assert psnr_at(points, 4.1) == (26.0, "fast") and psnr_at(points, 1.95) == (33.0, "slow")


def test_a_wide_gap_is_named() -> None:
    match = at_psnr([point("a", 3.0, 20.0), point("b", 1.0, 60.0)], 30.0)
    assert match.where is Where.WIDE and "40 dB apart" in match.note


def test_matched_covers_every_series_and_level() -> None:
    rows = pareto.matched([DENSE, OTHER, *FEWER, point("m", 3.0, 36.0)])
    assert {(r["series"], r["psnr"]) for r in rows} == {
        (series, level) for series in ("fewer steps", "s") for level in (25.0, 30.0, 35.0, 40.0)
    }
    at_35 = next(r for r in rows if r["series"] == "fewer steps" and r["psnr"] == 35.0)
    assert at_35["speedup"] == pytest.approx(math.sqrt(2.0 * 5.0))


def verdict(tested: Point, *fewer: Point) -> Verdict:
    points = [DENSE, OTHER, *fewer, tested]
    (found,) = verdicts(points, rows_of(*points))
    assert found.config == tested.id
    return found


@pytest.mark.parametrize(
    ("speedup", "psnr", "kind", "level", "words"),
    [
        (math.sqrt(10), 38.0, Kind.BETTER, Level.GOOD, "3.0 dB better than fewer steps at the same "
         "time (35.0 dB"),
        (math.sqrt(10), 35.2, Kind.EVEN, Level.WARNING, "no better than fewer steps"),
        (2.2, 30.0, Kind.WORSE, Level.WARNING, "would serve you better: 25 steps gives 40.0 dB"),
        (1.5, 35.0, Kind.WORSE, Level.WARNING, "25 steps gives 40.0 dB at 2.00×"),
        (1.5, 45.0, Kind.FINER, Level.NOTE, "5.0 dB better than the best that fewer steps gave"),
        (6.0, 33.0, Kind.FASTER, Level.GOOD, "every fewer-steps row measured; better quality"),
        (6.0, 20.0, Kind.FASTER, Level.WARNING, "every fewer-steps row measured; worse quality"),
        (1.0, 60.0, Kind.NO_FASTER, Level.WARNING, "no faster than dense"),
        (4.0, 12.5, Kind.ANOTHER_PICTURE, Level.WARNING, "as far from dense as another seed"),
    ],
)  # fmt: skip
def test_verdicts_as_data_and_in_plain_words(
    speedup: float, psnr: float, kind: Kind, level: Level, words: str
) -> None:
    found = verdict(point("m", speedup, psnr), *FEWER)
    assert (found.kind, found.level) == (kind, level)
    assert words in found.text


def test_a_row_that_skips_nothing_has_no_speed_in_its_verdict() -> None:
    idle = replace(point("m", 1.6, 99.0), speedup=math.nan, share=1.0, state=State.UNSKIPPED)
    found = verdict(idle, *FEWER)
    assert found.kind is Kind.UNSKIPPED and "nothing was skipped" in found.text
    assert "×" not in found.text and "identical" not in found.text


def test_noisy_rows_are_judged_by_their_computed_share() -> None:
    noisy = replace(point("m", 5.6, 36.0), share=0.5, state=State.NOISY)
    found = verdict(noisy, *FEWER)
    assert (found.kind, found.basis) == (Kind.WORSE, Basis.SHARE)
    assert (
        "50% computed at 36.0 dB (its timing was noisy)" in found.text and "5.60" not in found.text
    )
    fine = verdict(replace(noisy, psnr=44.0), *FEWER)
    assert (fine.kind, fine.fewer_psnr) == (Kind.BETTER, 40.0)
    assert "better than fewer steps at the same computed share" in fine.text
    for share, words in ((0.1, "less computed than every"), (0.7, "more computed than that")):
        beyond = verdict(replace(noisy, share=share, psnr=45.0), *FEWER)
        assert words in beyond.text and not {"faster", "slower"} & set(beyond.text.split())
    # One noisy row of fewer steps does not take the others' time away; all of them do.
    clean = point("m", 2.0, 44.0)
    one = [FEWER[0], replace(FEWER[1], state=State.NOISY)]
    assert verdict(clean, *one).basis is Basis.TIME
    assert verdict(clean, *(replace(p, state=State.NOISY) for p in FEWER)).basis is Basis.SHARE
    # Of sparse attention the computed share does not know.
    sparse = verdict(replace(noisy, config=replace(noisy.config, sparse=True)), *FEWER)
    assert (sparse.kind, sparse.basis) == (Kind.NO_TIMING, Basis.NONE)


def test_a_noisy_table_has_no_speeds_at_equal_quality() -> None:
    points = [replace(p, state=State.NOISY) for p in (*FEWER, point("m", 9.0, 35.0))]
    found = {(r["series"], r["psnr"]): r for r in pareto.matched(points)}
    match = found["fewer steps", 35.0]
    assert match["speedup"] is None and match["where"] is Where.NOISY
    assert match["computed_share"] == pytest.approx(math.sqrt(0.5 * 0.2))
    assert not any("×" in row["note"] for row in found.values())
    assert pareto.dominated(points) == {}


def test_verdict_without_anything_to_compare() -> None:
    assert verdict(point("m", 2.0, 30.0)).kind is Kind.ALONE


def test_lost_prompt_accuracy_is_said() -> None:
    points = [DENSE, *FEWER, point("m", 3.0, 38.0)]
    rows = rows_of(*points)
    rows["m"]["accuracy"]["colour"] = 0.6
    (found,) = verdicts(points, rows)
    assert "colour 100% → 60%" in found.text
    assert (found.level, found.lost) == (Level.WARNING, ("colour 100% → 60%",))


@pytest.mark.parametrize(("kept", "level"), [(0.75, Level.WARNING), (0.96, Level.GOOD)])
def test_flips_that_the_mean_hides_are_said(kept: float, level: Level) -> None:
    points = [DENSE, *FEWER, replace(point("m", 3.0, 38.0), kept=kept)]
    (found,) = verdicts(points, {**rows_of(*points), "m": {"n": 100}})
    assert (found.kind, found.level) == (Kind.BETTER, level)
    assert f"{100 - 100 * kept:.0f} of 100 samples became another picture" in found.text


def test_dominance() -> None:
    points = [DENSE, *FEWER, point("bad", 2.0, 20.0), point("good", 2.5, 45.0)]
    assert pareto.dominated(points) == {"bad": "good", "25 steps": "good"}


def head(*tested: Point) -> dict:
    points = [DENSE, OTHER, *FEWER, *tested]
    return headline(points, verdicts(points, rows_of(*points)))


def test_the_headline_is_a_row_that_nothing_beats() -> None:
    """The tile picked a loser at a level that interpolation had made, over a better row."""
    loser = point("AT", 1.76, 30.0, series="AT")
    balanced = replace(point("balanced", 1.98, 52.3), kept=1.0)
    flips = replace(point("fast", 2.7, 44.0), kept=0.9)
    peer = point("peer", 1.95, 41.0, "peer", "peer")
    found = head(loser, balanced, flips, peer)
    names = {"config": "balanced", "fewer": "25 steps", "peer": "peer", "missing": None}
    assert found == names
    assert head(replace(balanced, state=State.NOISY), flips)["config"] == "fast"
    none = {"config": None, "fewer": "25 steps", "peer": None, "missing": Missing.BEATEN}
    assert head(loser) == none
    assert head(replace(balanced, state=State.NOISY))["missing"] is Missing.NOISY
    assert head(replace(balanced, speedup=1.5))["missing"] is Missing.OUTSIDE
    assert head()["missing"] is Missing.NOTHING
    assert all(reason.text for reason in Missing)
