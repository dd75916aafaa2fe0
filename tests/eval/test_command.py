"""`ditaccel eval` on the command line: one clear line and exit code 2 for every bad input."""

import json
import shutil

import pytest
from ditaccel.eval.measure import memory

from ditaccel.cli import main
from ditaccel.io.models import load_pipeline, read_prompts, read_sheet
from ditaccel.io.progress import Progress, duration

FAST = ["--fewer", "2", "--steps", "4", "--features", "none", "--quiet", "--threads", "1"]


@pytest.fixture(autouse=True)
def cheap_memory(monkeypatch) -> None:
    """Looking at every object of the test session takes tenths of a second each time."""
    monkeypatch.setattr(memory, "live_tensor_bytes", lambda: 0)


@pytest.fixture
def broken_folder(model_folder, tmp_path):
    """A copy of the model folder to damage."""
    return shutil.copytree(model_folder, tmp_path / "broken")


def line_of(capsys, *arguments: str) -> str:
    """The one line on stderr that ends a wrong command with exit code 2."""
    capsys.readouterr()
    try:
        code = main(["eval", *arguments])
    except SystemExit as end:  # argparse's own
        code = end.code
    error = capsys.readouterr().err
    assert code == 2, error
    lines = [text for text in error.splitlines() if "error:" in text]
    assert len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


def test_table_report_and_resume(model_folder, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    arguments = ["eval", str(model_folder), "--config", "taylorseer:interval=2", "--limit", "1"]
    arguments += ["--seeds", "0,1", "--out", str(out), *FAST]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "taylorseer:interval=2" in printed and "2 steps" in printed and "report.html" in printed
    (line,) = [line for line in printed.splitlines() if "lpips" in line]  # named, no more
    assert "kid_real" in line and "the report says how" in line and "torchvision" not in printed
    assert (out / "report.html").stat().st_size > 1000 and (out / "table.md").exists()
    assert json.loads((out / "run.json").read_text())["prompts"] == ["a red circle"]
    assert main([*arguments, "--json", "--no-html"]) == 0
    assert json.loads(capsys.readouterr().out)["configs"]["dense"]["n"] == 2


def test_failed_samples_are_listed_with_exit_code_3(
    model_folder, tmp_path, capsys, monkeypatch
) -> None:
    from ditaccel.eval.comparison import rows

    original = rows.Rows.run

    def run(self, row, sample, between=None):
        if row.role == "fewer_steps" and between is None:
            raise rows.RowError("out of memory")
        return original(self, row, sample, between)

    monkeypatch.setattr(rows.Rows, "run", run)
    code = main(["eval", str(model_folder), "--out", str(tmp_path / "o"), "--no-html", *FAST])
    assert code == 3
    assert "failed: steps-2 p000-s0: out of memory" in capsys.readouterr().err


def test_bad_arguments(model_folder, tmp_path, capsys) -> None:
    model, out = str(model_folder), ["--out", str(tmp_path / "out")]
    for arguments, words in (
        ([model], "--out"),
        ([model, *out, "--seeds", "a,1"], "whole number"),
        ([model, *out, "--seeds", ""], "expected numbers"),
        ([model, *out, "--seeds", "-1"], "--seeds"),
        ([model, *out, "--limit", "0"], "whole number"),
        ([model, *out, "--steps", "1"], "whole number"),
        ([model, *out, "--call", "guidance"], "argument=value"),
        ([model, *out, "--fewer", "9", "--steps", "4"], "no sense"),
        ([model, *out, "--config", "nonsense"], "nonsense"),
        ([model, *out, "--config", "taylorseer:speed=1"], "speed"),
        ([model, *out, "--config", "peer/nobody"], "no peer"),
        ([model, *out, "--config", "peer/pab:x=1"], "no option"),
        ([model, *out, "--config", str(tmp_path / "none.yaml")], "none.yaml"),
        ([model, *out, "--prompts", str(tmp_path / "none.txt")], "there is no such file"),
        ([model, *out, "--merge", "a", "--workers", "2"], "--workers is for a run; merged runs"),
        ([model, *out, "--merge", "a", "--scheduler", "euler"], "--scheduler is for a run"),
        ([model, *out, "--merge", "a", "--seeds", "1"], "--seeds is for a run"),
        ([model, *out, "--merge", "a"], "two or more folders"),
        ([model, *out, "--features", "nowhere"], "neither a folder"),
        (["nowhere/at/all", *out, "--prompts", __file__], "no model folder"),
        ([str(tmp_path), *out, "--prompts", __file__], "no model_index.json"),
    ):
        assert words in line_of(capsys, *arguments), arguments
    assert not (tmp_path / "out").exists()


def test_hub_id_without_a_network(tmp_path, capsys) -> None:
    line = line_of(capsys, "nobody/nothing", "--out", str(tmp_path / "o"), "--prompts", __file__)
    assert "no model folder at nobody/nothing" in line and "HF_HUB_OFFLINE is set" in line


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("model_index.json", b"{"),
        ("transformer/config.json", b"not json"),
        ("transformer/diffusion_pytorch_model.safetensors", b"torn"),
        ("transformer/diffusion_pytorch_model.safetensors", None),
        ("scheduler/scheduler_config.json", None),
        ("sample.json", b"[1"),
        ("sample.json", b'{"call": 3}'),
    ],
)
def test_damaged_or_interrupted_model_folder(
    broken_folder, tmp_path, capsys, path, content
) -> None:
    if content is None:
        (broken_folder / path).unlink()
    else:
        (broken_folder / path).write_bytes(content)
    line = line_of(capsys, str(broken_folder), "--out", str(tmp_path / "out"), *FAST)
    assert "get it again" in line or "get the sample again" in line
    assert not (tmp_path / "out").exists()


def test_truncated_weights(broken_folder, tmp_path, capsys) -> None:
    path = broken_folder / "transformer/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    line = line_of(capsys, str(broken_folder), "--out", str(tmp_path / "out"), *FAST)
    assert "incomplete or damaged" in line


def test_pickled_weights_are_refused(broken_folder, tmp_path, capsys) -> None:
    import torch

    path = broken_folder / "transformer/diffusion_pytorch_model.safetensors"
    path.unlink()
    torch.save({}, path.with_suffix(".bin"))
    line_of(capsys, str(broken_folder), "--out", str(tmp_path / "out"), *FAST)


def test_out_of_another_run_and_unwritable_out(model_folder, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    arguments = [str(model_folder), "--limit", "1", "--no-html", *FAST]
    assert main(["eval", *arguments, "--out", str(out)]) == 0
    line = line_of(capsys, *arguments, "--out", str(out), "--config", "taylorseer:interval=2")
    assert "another setup (different: configs)" in line
    (out / "results.jsonl").write_text("broken\n{}\n")
    assert "line 1 is damaged" in line_of(capsys, *arguments, "--out", str(out))
    (tmp_path / "file").touch()
    assert "not writable" in line_of(capsys, *arguments, "--out", str(tmp_path / "file" / "x"))


def test_prompt_files(tmp_path, capsys) -> None:
    file = tmp_path / "p.txt"
    file.write_text("# a comment\n\n a red circle \nb\n", encoding="utf-8")
    assert read_prompts(file) == ["a red circle", "b"]
    assert read_prompts(file, 1) == ["a red circle"]
    out = ["--out", str(tmp_path / "out"), "--prompts", str(file)]
    for content, words in ((b"# nothing\n", "no prompt"), (b"\xff\xfe\x00", "UTF-8")):
        file.write_bytes(content)
        assert words in line_of(capsys, "owner/model", *out)


def test_sheet_paths_are_relative_to_the_folder(model_folder) -> None:
    sheet = read_sheet(model_folder)
    assert sheet.prompts == (model_folder / "prompts.txt").resolve()
    assert (sheet.features, sheet.fps, sheet.family) == (None, None, "dit")
    assert read_sheet("owner/model").call == {}


def test_loading_shows_no_bars(model_folder, capfd) -> None:
    pipe = load_pipeline(model_folder)
    assert not pipe.transformer.training
    assert "Loading pipeline" not in capfd.readouterr().err


def test_progress_lines(capsys, monkeypatch) -> None:
    monkeypatch.setattr("ditaccel.io.progress._LINE_SECONDS", 0.0)
    progress = Progress(4, done=2)
    progress.step("dense")
    progress.close()
    assert "3/4 generations, about" in capsys.readouterr().err
    quiet = Progress(1, quiet=True)
    quiet.step("dense")
    quiet.note("nothing")
    assert capsys.readouterr().err == ""
    assert [duration(s) for s in (2.34, 42, 185, 7800)] == [
        "2.3 s",
        "42 s",
        "3 min 5 s",
        "2 h 10 min",
    ]


def test_help_names_every_form(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    text = capsys.readouterr().out
    for word in ("steps:N", "peer/", "--real", "--features", "a|b|c"):
        assert word in text
