"""A metric and a peer of a module outside the repository: importing it is all it takes."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ditaccel.eval.measure import memory
from ditaccel.eval.metrics.base import METRICS, Metric, metrics, register
from ditaccel.eval.options import Options
from ditaccel.eval.peers.base import PEERS, Peer
from ditaccel.eval.peers.base import register as register_peer
from ditaccel.eval.report.page import markdown_table, plain_table, write_report
from ditaccel.eval.runs import evaluate

from ditaccel.errors import ConfigError, UsageError
from ditaccel.io.files import read_json, read_lines

MODULE = '''
import numpy as np
from ditaccel.eval.metrics.base import Metric, Need, register
from ditaccel.eval.peers.base import Peer, register as register_peer


def reuse(pipe, options, situation, prepared):
    """Every second call gives the output of the one before."""
    transformer, kept, dense = pipe.transformer, [], pipe.transformer.forward
    def forward(*args, **kwargs):
        if kept and len(kept) % options["every"]:
            kept.append(kept[-1])
        else:
            kept.append(dense(*args, **kwargs))
        return kept[-1]
    transformer.forward = forward


def brightness(file):
    scale = float(open(file).read())
    return lambda reference, frames: scale * frames.mean()


register(Metric(
    key="worst_pixel", title="worst pixel", unit="number", better="lower",
    about="largest difference to dense in 8-bit levels",
    run=lambda a, b: np.abs(a.astype(int) - b.astype(int)).max(),
))
register(Metric(
    key="letters", title="letters", unit="count", better="none", about="length of the prompt",
    needs=("pictures", "prompt"), run=lambda a, b, prompt: len(prompt),
))
register(Metric(
    key="bright", title="brightness", unit="number", better="none", about="scaled mean",
    needs=("pictures", "weights"), load=brightness, how="any number in a text file",
))
register(Metric(
    key="mean_gap", title="mean gap", unit="number", better="lower", per="set", fewest=2,
    about="difference of the two sets' mean levels",
    run=lambda a, b: abs(np.mean(a) - np.mean(b)),
))
register_peer(Peer(
    name="every_other", note="ours, for a test", options={"every": 2}, apply=reuse,
))
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The module's folder, with the module imported; what it registered goes afterwards."""
    monkeypatch.setattr(memory, "live_tensor_bytes", lambda: 0)
    (tmp_path / "my_measures.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("my_measures")
    yield tmp_path
    _forget()


def _forget() -> None:
    for key in ("worst_pixel", "letters", "bright", "mean_gap"):
        METRICS.remove(key)
    PEERS.remove("every_other")
    sys.modules.pop("my_measures", None)


@pytest.fixture
def run(outside: Path, model_folder: Path) -> Path:
    (outside / "scale.txt").write_text("2.0")
    options = Options(
        fewer=[3], features="none", quiet=True, weights={"bright": str(outside / "scale.txt")}
    )
    prompts = ["a red circle", "b"]
    return evaluate(
        str(model_folder), "peer/every_other:every=3", prompts, 0, outside / "out", options
    )


def test_they_are_in_the_summary_and_in_every_table(run: Path) -> None:
    rows = read_json(run / "summary.json")["configs"]
    peer = rows["peer-every-other-every-3"]
    assert peer["computed_share"] == pytest.approx(1 / 3)
    assert rows["dense"]["worst_pixel"] == 0 < peer["worst_pixel"] <= 255
    assert peer["letters"] == (len("a red circle") + 1) / 2
    assert rows["dense"]["mean_gap"] == 0 < peer["mean_gap"]
    lines = read_lines(run / "results.jsonl")
    shown = [x["metrics"]["worst_pixel"] for x in lines if x["config"].startswith("peer")]
    assert sum(shown) / 2 == peer["worst_pixel"]
    page = write_report(run).read_text()
    for table in (plain_table(run), markdown_table(run), page):
        for title in ("worst pixel", "letters", "brightness", "mean gap"):
            assert title in table
        assert f"{peer['worst_pixel']:.3f}" in table or f"{peer['worst_pixel']:.1f}" in table
    assert "largest difference to dense in 8-bit levels" in page
    # The plot's tooltips have it, too.
    assert re.search(r"data-tip=\"[^\"]*worst pixel \d", page)


def test_a_reader_without_the_module_sees_them_too(run: Path) -> None:
    with_module = plain_table(run)
    _forget()
    assert "worst_pixel" not in METRICS
    assert plain_table(run) == with_module and "worst pixel" in write_report(run).read_text()


def test_what_they_need_is_said(outside: Path, model_folder: Path) -> None:
    options = Options(fewer=[3], features="none", quiet=True)
    out = evaluate(str(model_folder), [], "b", 0, outside / "out", options)
    missing = read_json(out / "summary.json")["not_available"]
    weights = "needs weights (option `weights`, bright=PATH): any number in a text file"
    assert missing["bright"] == weights
    assert "at least 2 samples" in missing["mean_gap"]
    with pytest.raises(UsageError, match="weights ssim: no metric of this name takes weights"):
        evaluate(
            str(model_folder), [], "b", 0, outside / "o", Options(weights={"ssim": "x"}, quiet=True)
        )


def test_a_metric_that_is_registered_later_says_how_to_get_it(
    outside: Path, model_folder: Path
) -> None:
    options = Options(fewer=[3], features="none", quiet=True)
    arguments = (str(model_folder), [], "b", 0, outside / "out", options)
    METRICS.remove("worst_pixel")
    evaluate(*arguments)
    sys.modules.pop("my_measures")
    _forget()
    importlib.import_module("my_measures")
    out = evaluate(*arguments)
    missing = read_json(out / "summary.json")["not_available"]
    assert "delete results.jsonl" in missing["worst_pixel"]
    (out / "results.jsonl").unlink()
    evaluate(*arguments)
    assert read_json(out / "summary.json")["configs"]["dense"]["worst_pixel"] == 0


def _metric(**changes: object) -> Metric:
    words = {"key": "own", "title": "own", "unit": "number", "better": "lower", "about": "x"}
    return Metric(**{**words, "run": lambda a, b: 0.0, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unit": "furlong"}, "metric 'own': unit is 'furlong'; it must be one of: dB, share"),
        ({"better": "up"}, "better is 'up'; it must be one of: higher, lower, none"),
        ({"needs": ("luck",)}, "needs is 'luck'"),
        ({"per": "frame"}, "per is 'frame'; it must be one of: sample, set"),
        ({"key": "two words"}, "must be a word"),
        ({"key": "speedup"}, "tables have a figure of that name already"),
        ({"run": None}, "has no `run`"),
        ({"needs": ("weights",)}, "`load` goes with"),
        ({"key": "psnr"}, r"'psnr', which ditaccel.eval.metrics.psnr has registered"),
    ],
)
def test_a_bad_metric_is_one_clear_line(changes: dict[str, object], words: str) -> None:
    before = metrics()
    with pytest.raises(ConfigError, match=words) as caught:
        register(_metric(**changes))
    assert "\n" not in str(caught.value) and metrics() == before


def test_a_taken_name_of_a_peer_is_one_clear_line() -> None:
    peer = Peer(name="pab", note="mine", options={}, apply=print)
    with pytest.raises(ConfigError, match=r"'pab', which ditaccel.eval.peers.pab has registered"):
        register_peer(peer)
    with pytest.raises(ConfigError, match="must be a word"):
        register_peer(Peer(name="a peer", note="", options={}, apply=print))


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda a, b: 1 / 0, "metric own fails on p000-s0: ZeroDivisionError"),
        (lambda a, b: "good", "metric own must give a number, not a str"),
        (lambda a, b: float("inf"), "metric own gave inf on p000-s0; it must give a number of at"),
        (lambda a, b: float("nan"), "metric own gave nan"),
    ],
)
def test_a_metric_that_fails_ends_in_one_line(outside, model_folder, run, words) -> None:
    register(_metric(run=run))
    try:
        with pytest.raises(UsageError, match=words):
            options = Options(fewer=[3], features="none", quiet=True)
            evaluate(str(model_folder), [], "b", 0, outside / "out", options)
    finally:
        METRICS.remove("own")


def test_a_cell_of_a_notebook_may_run_twice() -> None:
    try:
        for title in ("one", "two"):
            register(_metric(title=title))
        assert METRICS["own"].title == "two"
    finally:
        METRICS.remove("own")


def test_what_a_run_keeps_of_a_metric_is_json() -> None:
    for metric in metrics():
        again = json.loads(json.dumps(metric.to_dict()))
        assert again["key"] == metric.key and again["unit"] == metric.unit
