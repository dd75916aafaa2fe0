"""Protocols: what is shipped, and a run on a tiny model: sharded, resumed, scored."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ditaccel.eval.metrics.base import METRICS
from ditaccel.eval.protocols.protocol import load, names
from ditaccel.eval.protocols.score import outputs_of

from ditaccel.cli import main
from ditaccel.io.files import read_json, read_lines
from ditaccel.io.frames import psnr

OWN = """\
title: tiny DiT
about: two classes
pipeline: DiTPipeline
classes: {classes: 2, each: 3}
steps: 6
scheduler: ddim
call: {guidance_scale: 2.0}
save: [png]
metrics: [psnr, ssim, lpips, histogram, fid_dense]
published:
  - {label: theirs, speedup: "2×", figures: {psnr: 31.25, lpips: 0.2}, source: a paper}
"""


def test_all_that_are_shipped_can_be_read() -> None:
    assert names() == [
        *("dit-imagenet-50k", "flux-drawbench", "hunyuan-vbench", "qwen-drawbench"),
        *("scenes-flux", "scenes-flux-turbo", "scenes-wan", "scenes-wan22", "wan-vbench"),
    ]
    for name in names():
        protocol = load(name)
        assert set(protocol.metrics) <= set(METRICS)
        assert bool(protocol.published) != protocol.own_prompts
        for row in protocol.published:
            assert row.source and set(row.figures) <= set(METRICS), row
        assert {"png", "frames"} & set(protocol.save)
    assert load("dit-imagenet-50k").samples == 50_000
    assert load("wan-vbench").samples == 4730


def test_rows_have_seeds_of_their_own(tmp_path: Path) -> None:
    rows = load("dit-imagenet-50k").rows(None, 1002)
    assert rows[1001] == {"class_label": 1, "seed": 1001} and len(rows) == 1002
    file = tmp_path / "prompts.txt"
    file.write_text("# set\na cat\n\na dog\n")
    rows = load("wan-vbench").rows(str(file))
    assert [row["seed"] for row in rows] == [0, 1, 2, 3, 4] * 2 and rows[5]["prompt"] == "a dog"
    assert load("qwen-drawbench").rows(str(file))[0]["negative_prompt"] == " "


@pytest.fixture
def bench(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run `ditaccel bench protocol` on the tiny model; returns exit code, stdout and stderr."""
    own = tmp_path / "own.yaml"
    own.write_text(OWN)

    def run(*options: str, protocol: str = str(own)) -> tuple[int, str, str]:
        command = ["bench", "protocol", protocol, str(model_folder), "--out", str(tmp_path / "out")]
        code = main([*command, *options])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


CONFIG = ("--config", "reuse:interval=3", "--config", "steps:3", "--workers", "1", "--quiet")


def test_a_run_in_shards_ends_in_a_table_beside_published_rows(bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, _ = bench(*CONFIG, "--shard", "0/2")
    assert code == 1 and "9 items are missing: run the other shards" in printed
    code, printed, _ = bench(*CONFIG, "--shard", "1/2")
    assert code == 0
    table = (out / "table.md").read_text()
    assert printed.strip() == table.strip()
    assert "| *theirs* | 2× | 31.2 |" in table and "published: a paper" in table
    assert "not available: lpips: needs weights" in table and "fid_dense" in table
    assert "not the protocol" not in table
    summary = read_json(out / "protocol.json")
    row = summary["rows"]["reuse:interval=3"]
    dense, mine = (
        {o.key: o.frames() for o in outputs_of(out / name)[0]}
        for name in ("dense", "reuse-interval-3")
    )
    levels = [psnr(mine[key], dense[key]) for key in dense]
    assert len(levels) == 6 and row["psnr"] == pytest.approx(np.mean(levels), abs=1e-6)
    assert row["psnr_min"] == pytest.approx(min(levels), abs=1e-6) and row["n"] == 6
    fewer = [o.record["call"]["num_inference_steps"] for o in outputs_of(out / "steps-3")[0]]
    assert set(fewer) == {3} and "speedup" in row
    # again: nothing is made or measured, and the table is the same
    lines = read_lines(out / "reuse-interval-3.scores.jsonl")
    code, again, _ = bench(*CONFIG)
    assert code == 0 and read_lines(out / "reuse-interval-3.scores.jsonl") == lines
    assert again.strip() == table.strip()


def test_a_dry_run_loads_nothing_and_names_what_is_missing(bench, tmp_path: Path) -> None:
    code, printed, _ = bench(
        "--dry-run", "--limit", "4", "--steps", "8", protocol="dit-imagenet-50k"
    )
    assert code == 0 and not (tmp_path / "out").exists()
    assert "rows: none, 4 samples each" in printed and "scheduler ddim" in printed
    assert "not the protocol: 4 samples, not 50000; 8 steps, not 50" in printed
    assert "published rows beside them: 7" in printed


@pytest.mark.parametrize("name", names())
def test_a_dry_run_of_each_says_how_it_is_made(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    """Of a model of the right pipeline, whose folder holds no more than its prompts."""
    protocol = load(name)
    facts = SimpleNamespace(by_class=bool(protocol.classes), pipeline=protocol.pipeline)
    monkeypatch.setattr("ditaccel.eval.bench.protocol.read_facts", lambda *_: facts)
    model = tmp_path / "model"
    model.mkdir()
    (model / "sample.json").write_text(json.dumps({"prompts": "../prompts.txt"}))
    (tmp_path / "prompts.txt").write_text("".join(f"thing {i}\n" for i in range(128)))
    command = ["bench", "protocol", name, str(model), "--out", str(tmp_path / "out"), "--dry-run"]
    if protocol.what:
        assert main(command) == 2 and protocol.what in capsys.readouterr().err
        command += ["--prompts", str(tmp_path / "prompts.txt")]
    assert main([*command, "--config", "fast"]) == 0
    printed = capsys.readouterr().out
    assert protocol.title in printed and "rows: none, fast" in printed
    assert f"{protocol.steps} steps" in printed and not (tmp_path / "out").exists()
    assert f"published rows beside them: {len(protocol.published)}" in printed
    for key in protocol.metrics:  # what needs weights says which file, and from where
        metric = METRICS[key]
        if metric.weights_name:
            how = f"(option `weights`, {metric.weights_name}=PATH): {metric.how}"
            assert f"not measured: {key}: needs weights {how}" in printed
    assert ("not measured: fid_real: needs" in printed) == ("fid_real" in protocol.metrics)
    assert ("github.com/Vchitect/VBench" in printed) == name.endswith("vbench")
    assert ("not the protocol" in printed) == (not protocol.own_prompts)
    assert ("features of the model, not of inception" in printed) == name.startswith("dit")


@pytest.mark.parametrize("name", [name for name in names() if name.startswith("scenes-")])
def test_a_sample_that_is_not_there_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "none")
    assert main(["bench", "protocol", name, missing, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"the sample samples/models/{name}, and {missing} has none" in line
    assert "it is not shipped yet" in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("flux-drawbnch", "no protocol 'flux-drawbnch'; did you mean 'flux-drawbench'? Known: dit"),
        ("flux-drawbench", "takes DrawBench's 200 prompts, which cannot be shipped; give a file"),
        ("bad.yaml", "bad: not a protocol (it must have either classes or prompts or own_prompts)"),
    ],
)
def test_mistakes_are_one_line(bench, tmp_path: Path, monkeypatch, protocol, message) -> None:
    monkeypatch.chdir(tmp_path)
    text = OWN.replace("classes: {classes: 2, each: 3}\n", "")
    (tmp_path / "bad.yaml").write_text(text)
    code, _, error = bench("--dry-run", protocol=protocol)
    assert code == 2 and message in error.strip().splitlines()[-1]


def test_a_protocol_by_text_is_not_for_a_model_by_class(bench, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n")
    prompts = ("--prompts", str(tmp_path / "prompts.txt"))
    code, _, error = bench("--dry-run", *prompts, protocol="flux-drawbench")
    assert code == 2 and "DiTPipeline is asked by class" in error
