"""A job's audit: what is compared, what follows, and that nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import ForkedWorker
from job_folders import assert_tidy, outputs, sidecars
from scipy import stats

import ditaccel
from ditaccel.batch.audit import Audit, Watch, key_of, parse_audit, safer_than
from ditaccel.batch.facts import read_facts
from ditaccel.batch.folder import JobFolder
from ditaccel.batch.manifest import Item
from ditaccel.cli import main
from ditaccel.io.files import read_lines
from ditaccel.io.frames import MOST_PSNR, psnr
from ditaccel.reports.audited import FEWEST, Audited, Outcome, student

Run = Callable[..., tuple[int, str, str]]
Jobs = Callable[..., Path]


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 6, 10, 100])
def test_quantiles_are_students(freedom: int) -> None:
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


def test_the_interval_holds_the_mean_of_all() -> None:
    rng = np.random.default_rng(0)
    found = [Audited(list(rng.normal(31, 4, 6))).interval or (0, 0) for _ in range(400)]
    held = np.mean([low <= 31 <= high for low, high in found])
    assert 0.92 < held < 0.98
    assert Audited([30.0]).interval is None


def test_a_target_is_missed_only_where_that_is_sure() -> None:
    assert Audited([20.0, 21.0, 20.0]).misses(25)
    assert not Audited([20.0] * (FEWEST - 1)).misses(25)
    assert not Audited([20.0, 28.0, 24.0]).misses(25)
    assert not Audited([26.0, 26.1, 26.0]).misses(25)


def test_items_are_chosen_by_their_ids_alone() -> None:
    items = [Item(f"{i:016x}", i, config={"cache": {}}) for i in range(4000)]
    chosen = [item.id for item in items if Audit(0.1).chooses(item)]
    assert 340 < len(chosen) < 460  # 400 of them, 3 standard deviations
    assert set(chosen) <= {item.id for item in items if Audit(0.3).chooses(item)}
    assert all(Audit(1.0).chooses(item) for item in items)
    assert not Audit(1.0).chooses(Item("0" * 16, 1))  # dense


def test_psnr_of_bytes() -> None:
    a = np.full((2, 4, 4, 3), 100, np.uint8)
    assert psnr(a, a) == MOST_PSNR
    assert psnr(a, a + np.uint8(5)) == pytest.approx(20 * np.log10(255 / 5))
    assert psnr(a * 0, a * 0 + np.uint8(255)) == pytest.approx(0)


def test_what_is_safer(model: Path) -> None:
    facts = read_facts(str(model))
    names = [[name for name, _ in safer_than(facts, facts.resolve(text))] for text in _TEXTS]
    assert names == [["balanced", "safe", "none"], ["safe", "none"], ["none"], ["safe", "none"]]
    audit = Audit(0.5, 30.0, safer={"a": safer_than(facts, facts.resolve("fast"))})
    data = json.loads(json.dumps({**vars(audit)}))
    assert parse_audit(data) == audit and audit.name_of(facts.resolve("safe")) == "safe"


_TEXTS = ("fast", "balanced", "safe", "reuse:interval=3")


def test_a_watch_goes_down_the_chain_and_no_further_than_it_must(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    folder.make()
    a, b = {"cache": {"n": 1}}, {"cache": {"n": 2}}
    watch = Watch(folder, Audit(1.0, 30.0, safer={key_of(a): [("b", b), ("none", None)]}))
    item = Item("f" * 16, 1, config=a)

    def audited(config: dict[str, Any], level: float, *numbers: int) -> None:
        for i in numbers:
            folder.add_audit({"id": f"{i:016x}", "config": config, "psnr": level})

    audited(a, 20.0, 1, 2)
    assert watch.current(item) is item
    audited(a, 20.5, 3)
    assert watch.current(item).config == b and watch.current(item).id == item.id
    audited(b, 35.0, 4, 5, 6)
    assert watch.current(item).config == b and not watch.stopped
    audited(b, 1.0, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    assert watch.current(item).config is None
    assert watch.current(Item("e" * 16, 1, config=b)).config == b  # which was asked for
    assert Watch(folder, Audit(1.0, 30.0, True, watch.audit.safer)).stopped


def test_what_is_said_of_a_target_is_sure_or_open() -> None:
    """30, 31 and 32 dB: the mean of all is within 28.5 and 33.5 dB."""
    found = Audited((30.0, 31.0, 32.0))
    assert found.outcome(28.0) is Outcome.REACHED and found.outcome(34.0) is Outcome.MISSED
    assert (
        found.outcome(31.0) is Outcome.OPEN and Audited((50.0, 50.0)).outcome(1.0) is Outcome.OPEN
    )
    assert "too few audited to tell" in Outcome.OPEN.words(31.0)


def test_an_audit_changes_no_output_and_is_in_results_and_report(
    generate: Run, jobs: Jobs, tmp_path: Path
) -> None:
    path, config = jobs(5), ("--config", "reuse:interval=3")
    generate(path, *config, out=tmp_path / "plain")
    code, printed, _ = generate(path, *config, "--audit", "0.6")
    out = tmp_path / "out"
    assert code == 0 and outputs(out) == outputs(tmp_path / "plain")
    assert_tidy(out)
    lines = read_lines(out / "results.jsonl")
    audited = [line for line in lines if "audit" in line]
    assert 0 < len(audited) < 5 and all("dense_thumbnail" not in line for line in lines)
    assert f"of {len(audited)} audited" in printed and "audit of reuse:interval=3" in printed
    generate(path, "--config", "none", out=tmp_path / "dense")
    pictures = [
        {record["seed"]: record["files"][0]["path"] for record in sidecars(folder).values()}
        for folder in (out, tmp_path / "dense")
    ]
    for line in audited:
        ours, theirs = (found[line["seed"]] for found in pictures)
        expected = _psnr_of(out / "outputs" / ours, tmp_path / "dense" / "outputs" / theirs)
        assert line["audit"]["psnr"] == pytest.approx(expected)
    assert main(["report", str(out)]) == 0
    page = (out / "gallery.html").read_text()
    assert "dB to dense" in page and "Audit" in page
    # again: nothing is made, and what was found is still there
    assert f"of {len(audited)} audited" in generate(path, *config, "--audit", "0.6")[1]


def _psnr_of(ours: Path, theirs: Path) -> float:
    from PIL import Image

    a, b = (np.asarray(Image.open(path)).astype(float) for path in (ours, theirs))
    error = float(((a - b) ** 2).mean())
    return MOST_PSNR if error == 0 else 10 * float(np.log10(255**2 / error))


def test_below_the_target_the_job_goes_on_with_a_safer_config(
    generate: Run, jobs: Jobs, tmp_path: Path
) -> None:
    path = jobs(8)
    options = ("--config", "reuse:interval=4", "--audit", "1", "--audit-target", "psnr=98")
    code, printed, noted = generate(path, *options, "--no-overlap")
    assert code == 0 and "8 of 8 items done" in printed
    records = sorted(sidecars(tmp_path / "out").values(), key=lambda r: r["finished"])
    names = [record.get("safer", "") for record in records]
    assert names[:3] == ["", "", ""] and names[3] == "safe"
    assert "those that were not begun are made with safe" in noted
    assert "below the target of 98 dB" in printed
    # the same items, whatever made them: nothing is left to do
    assert "made 0" in generate(path, *options)[1]


def test_below_the_target_a_job_stops_where_that_is_asked_for(
    generate: Run, jobs: Jobs, tmp_path: Path
) -> None:
    path, config = jobs(6), ("--config", "reuse:interval=4")
    audit = ("--audit", "1", "--audit-target", "psnr=98", "--audit-stop", "--no-overlap")
    code, printed, _ = generate(path, *config, *audit)
    assert code == 1 and "3 of 6 items done, 0 failed, 3 left" in printed
    assert "stopped by the audit" in printed
    assert generate(path, *config, *audit)[0] == 1
    assert generate(path, *config)[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--audit", "0"], "a share above 0 and at most 1, such as 0.02: '0'"),
        (["--audit", "1.5"], "a share above 0 and at most 1"),
        (["--audit-target", "psnr=30"], "there is no audit; say which share"),
        (["--audit-stop"], "there is no audit; say which share"),
        (["--audit", "0.1", "--audit-stop"], "no level to stop at"),
        (["--audit", "0.1", "--audit-target", "ssim=1"], "must be psnr=DB"),
        (["--audit", "0.1", "--save", "latents"], "save png or mp4"),
    ],
)
def test_mistakes_are_one_line(
    generate: Run, jobs: Jobs, capsys: Any, options: list[str], message: str
) -> None:
    try:
        code, _, error = generate(jobs(2), *options)
    except SystemExit as end:
        code, error = int(str(end.code)), capsys.readouterr().err
    assert code == 2 and message in error.strip().splitlines()[-1]


def test_workers_and_batches_audit_the_same_items_to_the_same_end(
    generate: Run, jobs: Jobs, tmp_path: Path, crew: list[ForkedWorker]
) -> None:
    path = jobs(8)
    options = ("--config", "reuse:interval=3", "--audit", "0.5", "--audit-target", "psnr=5")
    found = []
    for name, more in (("one", ()), ("two", ("--workers", "2")), ("batch", ("--batch", "4"))):
        out = tmp_path / name
        assert generate(path, *options, *more, out=out)[0] == 0
        found.append({r["id"]: r["audit"]["psnr"] for r in sidecars(out).values() if "audit" in r})
        assert_tidy(out)
        assert {p.stem for p in (out / "audit").iterdir()} == set(found[-1])
    assert len(crew) == 2 and 0 < len(found[0]) < 8
    assert found[0] == found[1] and outputs(tmp_path / "one") == outputs(tmp_path / "two")
    # several in a call round otherwise than each alone, and the dense ones are made alone
    assert found[0] == pytest.approx(found[2], abs=0.5)


def test_from_python(model: Path, tmp_path: Path) -> None:
    rows = [{"class_label": i} for i in range(4)]
    options = {"audit": 1.0, "audit_target": "psnr=98", "audit_stop": True, "quiet": True}
    made = ditaccel.generate(
        str(model),
        rows,
        tmp_path / "out",
        "reuse:interval=4",
        workers=1,
        no_overlap=True,
        **options,
    )
    assert made.summary["stopped"] and made.made == FEWEST
    assert [line["n"] for line in made.summary["audits"]] == [FEWEST]
    with pytest.raises(ditaccel.ConfigError, match=r"audit is '2'.*above 0 and at most 1"):
        ditaccel.generate(str(model), rows, tmp_path / "out", audit=2)
