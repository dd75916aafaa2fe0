"""`--config` texts."""

import pytest
from ditaccel.eval.specs import baselines, build, parse_config, parse_value

from ditaccel.errors import ConfigError


def test_forms() -> None:
    (preset,) = parse_config("balanced")
    assert (preset.role, preset.work.cache, preset.work.steps) == ("method", "balanced", None)
    (file,) = parse_config("sub/my.yaml")
    assert (file.label, file.work.cache) == ("my", "sub/my.yaml")
    (steps,) = parse_config("steps:25")
    assert (steps.role, steps.work.steps, steps.series, steps.knob) == (
        "fewer_steps",
        25,
        "fewer steps",
        25,
    )
    (both,) = parse_config("steps:25+taylorseer:interval=3")
    assert (both.role, both.work.steps, both.work.cache) == ("method", 25, "taylorseer:interval=3")
    (peer,) = parse_config("peer/magcache:threshold=.1,max_skip=2")
    assert (peer.role, peer.work.peer) == ("peer", "magcache")
    assert peer.work.options == (("threshold", ".1"), ("max_skip", "2"))
    (named,) = parse_config("CG-Taylor=confidence_gated_taylor:threshold=0.1")
    assert (named.label, named.work.cache) == ("CG-Taylor", "confidence_gated_taylor:threshold=0.1")


def test_the_plugin_may_choose_the_steps() -> None:
    (row,) = parse_config("steps:auto+balanced")
    assert row.work.steps is None and row.work.cache == "steps:auto+balanced"
    assert row.role == "method"
    with pytest.raises(ConfigError, match="steps:auto needs a whole number"):
        parse_config("steps:auto+peer/fbc:threshold=0.1")


def test_a_sweep_makes_one_series() -> None:
    rows = parse_config("CG=confidence_gated_taylor:threshold=0.02|.05|0.1,order=1")
    assert [row.knob for row in rows] == [0.02, 0.05, 0.1]
    assert {row.series for row in rows} == {"CG"}
    assert [row.label for row in rows] == ["CG 0.02", "CG .05", "CG 0.1"]
    assert rows[1].work.cache == "confidence_gated_taylor:threshold=.05,order=1"
    assert len({row.id for row in rows}) == 3
    unnamed = parse_config("taylorseer:interval=2|3,order=1")
    assert {row.series for row in unnamed} == {"taylorseer:interval=*,order=1"}
    steps = parse_config("steps:10|20")
    assert [row.work.steps for row in steps] == [10, 20]


def test_several_sweeps_multiply() -> None:
    rows = parse_config("T=taylorseer:interval=2|3,order=0|1")
    assert [row.label for row in rows] == ["T 2 0", "T 2 1", "T 3 0", "T 3 1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("steps:x", "whole number"),
        ("steps:0", "whole number"),
        ("peer/magcache:threshold", "option=value"),
        ("peer/magcache:threshold=1,threshold=2", "twice"),
        ("taylorseer:interval=2||3", "empty alternative"),
    ],
)
def test_bad_texts(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(text)


def test_baselines_are_always_there() -> None:
    rows = build([], 50)
    assert [row.role for row in rows] == ["dense", "other_seed"] + ["fewer_steps"] * 5
    assert [row.work.steps for row in rows[2:]] == [38, 25, 17, 12, 10]
    assert [row.work.steps for row in baselines(2)[2:]] == [1]
    assert [row.work.steps for row in build([], 10, [4])[2:]] == [4]


def test_build_drops_repeats_and_refuses_confusion() -> None:
    assert len(build(["steps:25", "balanced", "balanced"], 50)) == 8
    with pytest.raises(ConfigError, match="labelled"):
        build(["A=balanced", "A=fast"], 50)
    with pytest.raises(ConfigError, match="more steps"):
        build(["steps:60+taylorseer:interval=3"], 50)
    with pytest.raises(ConfigError, match="already"):
        build(["steps:50"], 50)
    with pytest.raises(ConfigError, match="no sense"):
        build([], 10, [10])
    seen = []
    build(["balanced"], 50, None, seen.append)
    assert [row.work.cache for row in seen] == ["balanced"]


def test_close_values_get_names_of_their_own() -> None:
    rows = build(["taylorseer:threshold=.1|1|0.1"], 10, [5])
    assert len({row.id for row in rows}) == len(rows) == 6
    assert all("/" not in row.id and len(row.id) <= 60 for row in rows)
    (long,) = parse_config("taylorseer:" + ",".join(f"option{i}={i}" for i in range(30)))
    assert len(long.id) <= 60


def test_values() -> None:
    assert [parse_value(t) for t in ("1", "1.5", ".5", "true", "False", "lite")] == [
        1,
        1.5,
        0.5,
        True,
        False,
        "lite",
    ]


def test_several_files_are_one_series():
    rows = parse_config("tuned=a/share-0.2.yaml|a/share-0.3.yaml")
    assert [(r.label, r.series, r.work.cache) for r in rows] == [
        ("tuned share-0.2", "tuned", "a/share-0.2.yaml"),
        ("tuned share-0.3", "tuned", "a/share-0.3.yaml"),
    ]
    assert parse_config("one.yaml")[0].label == "one"


def test_caching_and_attention_sweep_together() -> None:
    rows = parse_config("both=taylorseer:interval=2|3&lite_attention:threshold=-5")
    assert [row.label for row in rows] == ["both 2", "both 3"]
    assert rows[1].work.cache == "taylorseer:interval=3&lite_attention:threshold=-5"
