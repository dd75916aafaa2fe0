"""`ditaccel tune`: files that `accelerate` takes; mistakes in one line, exit code 2."""

import json
from pathlib import Path

import pytest

from ditaccel import config as configs
from ditaccel.cli import main
from ditaccel.errors import UsageError


@pytest.fixture(scope="module")
def additive(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a DDIM that does not clip, so that outputs add up."""
    import shutil

    folder = tmp_path_factory.mktemp("additive") / "model"
    shutil.copytree(model_folder, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "clip_sample": False}))
    return folder


def test_several_targets_make_several_files(additive, tmp_path, capsys):
    out = tmp_path / "tuned"
    arguments = ["tune", str(additive), "--share", "0.5,0.7", "--steps", "10", "--limit", "1"]
    assert main([*arguments, "--out", str(out)]) == 0
    files = sorted(out.iterdir())
    assert [f.name for f in files] == ["share-0.5.yaml", "share-0.7.yaml"]
    for file, share in zip(files, (0.5, 0.7), strict=True):
        cache = configs.load(file).cache
        assert cache.total == 10 and len(cache.steps) <= share * 10
    assert "share-0.5" in capsys.readouterr().out


def test_one_target_makes_one_file(additive, tmp_path):
    path = tmp_path / "one.yaml"
    arguments = ["tune", str(additive), "--psnr", "12", "--limit", "1", "--out", str(path)]
    assert main(arguments) == 0
    assert configs.load(path).cache.total == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--psnr", "20,30", "--out", "a.yaml"], "2 targets need a folder"),
        (["--share", "1.5", "--out", "a.yaml"], "a number between 0 and 1: '1.5'"),
        (["--share", "0.5", "--out", "a.yaml", "--prompts", "none.txt"], "there is no such file"),
        (["--share", "0.5", "--out", "/proc/no/a.yaml"], "cannot write"),
        (["--psnr", "20", "--runs", "r", "--out", "a.yaml"], "--runs is for a search in seconds"),
        (["--share", "0.5", "--space", "", "--out", "a.yaml"], "searched in seconds"),
        (["--target", "speedup=2", "--resume", "r", "--out", "a.yaml"], "--resume is for"),
        (["--target", "ssmi=0.9", "--out", "a.yaml"], "no metric 'ssmi'"),
        (["--fit", "teacache", "--space", "", "--out", "a.yaml"], "--space says nothing"),
    ],
)
def test_mistakes_are_one_line(additive, arguments, message, capsys):
    try:
        code = main(["tune", str(additive), *arguments])
    except SystemExit as end:  # argparse's own
        code = end.code
    assert code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(("ditaccel: error:", "ditaccel tune: error:")) and message in error


def test_a_scheduler_that_clips_is_refused(model_folder, tmp_path, capsys):
    arguments = ["tune", str(model_folder), "--share", "0.5", "--out", str(tmp_path / "a.yaml")]
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "clips or thresholds; use a preset" in lines[-1]
    assert len([line for line in lines if "dense run" in line]) == 1, "known after the first run"
    assert not (tmp_path / "a.yaml").exists()


def test_a_target_out_of_reach_is_said_with_exit_code_1(additive, tmp_path, capsys):
    path = tmp_path / "far.yaml"
    arguments = ["tune", str(additive), "--psnr", "98", "--limit", "1", "--out", str(path)]
    assert main(arguments) == 1
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if "not reached" in line]
    assert (
        len(lines) == 1 and "psnr-98: no plan that was run reaches 98 dB; the best of" in lines[0]
    )
    assert str(path) in lines[0] and path.exists()
    shown = [
        float(line.split(", ")[1].split()[0]) for line in told.err.splitlines() if "share" in line
    ]
    # the best that was shown, not the last, with the doubt that a target is compared without
    assert f"has {max(shown):.1f} ± " in lines[0]


def test_a_file_that_is_there_is_not_replaced_without_being_told(additive, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    arguments = ["tune", str(additive), "--psnr", "12", "--limit", "1", "--out", str(path)]
    assert main(arguments) == 2
    assert (
        "mine.yaml exists; give another --out" in capsys.readouterr().err
        and path.read_text() == "mine"
    )
    far = [*arguments[:3], "98", *arguments[4:], "--overwrite"]
    assert main(far) == 1
    assert "is left as it was" in capsys.readouterr().err and path.read_text() == "mine"
    assert main([*arguments, "--overwrite"]) == 0
    assert configs.load(path).cache.total == 6
    folder = tmp_path / "share-0.7.yaml"
    folder.mkdir()
    arguments = ["tune", str(additive), "--share", "0.5,0.7", "--out", str(tmp_path)]
    assert main(arguments) == 2 and not (tmp_path / "share-0.5.yaml").exists()


def test_a_calibration_of_no_effect_is_said_and_writes_nothing(
    additive, tmp_path, capsys, monkeypatch
):
    path = tmp_path / "a.yaml"
    arguments = ["tune", str(additive), "--attention-error", "0.02", "--limit", "1"]
    assert main([*arguments, "--out", str(path)]) == 2
    assert "than min_tokens=1024 stay dense" in capsys.readouterr().err and not path.exists()

    from ditaccel.attention.lite_attention import LiteAttentionConfig
    from ditaccel.tuning import command as tune_command
    from ditaccel.tuning.calibration import Calibration

    found = [Calibration(LiteAttentionConfig(), (0.01,), (density,), 0.7) for density in (0.9, 0.5)]
    found.append(Calibration(LiteAttentionConfig(), (0.05,), (0.5,), 0.7))
    monkeypatch.setattr(tune_command, "calibrate", lambda *_, **__: found.pop(0))
    assert main([*arguments, "--out", str(path)]) == 1
    told = capsys.readouterr().err
    assert "90 % of the attention is kept" in told and "no file is written" in told
    assert not path.exists()
    assert main([*arguments, "--out", str(path)]) == 0 and path.exists()
    assert main([*arguments, "--out", str(tmp_path / "b.yaml")]) == 1
    assert "the mean error of the layers is 0.0500" in capsys.readouterr().err


def test_prompts_that_evaluations_begin_with_are_left_to_them(additive, tmp_path):
    from ditaccel.cli import _parser
    from ditaccel.io.factory import Opened
    from ditaccel.io.models import load_pipeline, read_sheet
    from ditaccel.tuning.command import _calls

    opened = Opened(load_pipeline(additive))
    labels = {0: "a red circle", 1: "b"}

    def chosen(*more: str) -> list[str]:
        words = ["tune", str(additive), "--psnr", "20", "--out", str(tmp_path / "a.yaml"), *more]
        args = _parser("tune").parse_args(words)
        calls, _ = _calls(opened, read_sheet(additive), args)
        return [labels[call["class_labels"][0]] for call in calls]

    assert chosen("--limit", "1") == ["b"]
    assert chosen("--limit", "1", "--skip", "0") == ["a red circle"]
    assert chosen() == chosen("--skip", "0") == ["a red circle", "b"]
    with pytest.raises(UsageError, match="skip 2 leaves none of 2 prompts"):
        chosen("--skip", "2")


def test_a_promise_is_tested_on_the_other_prompts(additive, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\nb\n" * 3)
    path = tmp_path / "promised.yaml"
    common = ["tune", str(additive), "--prompts", str(prompts), "--out", str(path), "--steps", "6"]
    asked = ["--psnr", "12", "--promise", "0.3", "--confidence", "0.9"]
    assert main([*common, *asked, "--limit", "1"]) == 0
    assert "12 dB for 30 % of the samples with 90 % confidence" in configs.load(path).label
    assert "of 5 held-out prompts reach" in capsys.readouterr().err
    path.unlink()
    assert main([*common, *asked, "--limit", "5"]) == 2
    assert "at least 4 prompts besides the 5 that are learnt from" in capsys.readouterr().err
    assert not path.exists()
    assert main([*common, "--share", "0.5", "--promise", "0.9"]) == 2
    assert "a promise is about --psnr" in capsys.readouterr().err


def test_a_search_in_a_space_writes_what_it_found_and_what_it_tried(additive, tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "tuned"
    arguments = ["tune", str(additive), "--target", "psnr=12,speedup=1.01", "--limit", "1"]
    arguments += ["--pairs", "1", "--space", "steps=5", "--steps", "8", "--runs", str(runs)]
    main([*arguments, "--out", str(out)])
    printed = capsys.readouterr()
    assert "psnr-12" not in printed.err or "not reached" in printed.err
    tried = json.loads((runs / "tuning.json").read_text())
    assert list(tried["targets"]) == ["12 dB", "1.01 x the speed of dense"]
    rows = tried["targets"]["12 dB"]["rows"]
    assert {"cache", "steps"} >= {row["kind"] for row in rows}
    assert all((runs / f"picture-{row['config']}.npz").exists() for row in rows)
    assert configs.load(out / "12-dB.yaml").scheduler
