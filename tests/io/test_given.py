"""What users hand over as text: one line for whatever is wrong with it, and no traceback."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ditaccel.cli import main
from ditaccel.errors import ConfigError, DitaccelError, UsageError
from ditaccel.io import given


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("a\0b", "NUL"),
        ("~nouser/x", "'~nouser' has no home"),
        ("x" * 5000, "too long"),
        ("a/" + "é" * 200, "too long"),
        ("a/" * 3000, "too long"),
    ],
)
def test_a_path_that_no_file_system_takes_is_one_line(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        given.path(text)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_a_path_is_expanded_and_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert given.path("~/x") == Path("/somewhere/x")
    assert given.path(Path("a")) == Path("a")


def test_an_output_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert given.output_file(tmp_path / "new" / "x.png", "--png").name == "x.png"
    for bad in (tmp_path, f"{tmp_path}/x/", tmp_path / "file" / "x.png"):
        with pytest.raises(UsageError, match="--png"):
            given.output_file(bad, "--png")


@pytest.mark.parametrize("text", ["meta", "nonsense", "cuda:99", "mps", "xpu", "cpu:x", "", "a\nb"])
def test_a_device_that_is_not_here_is_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError) as caught:
        given.device(text)
    assert "\n" not in str(caught.value)
    assert given.device("cuda:1") == "cuda:1" and given.device("cpu") == "cpu"


def test_seeds_are_what_generators_take() -> None:
    assert given.seed(given.MAX_SEED) == given.MAX_SEED
    torch.Generator().manual_seed(given.MAX_SEED)
    for bad in (-1, given.MAX_SEED + 1, 10**5000, True, 1.0, "1"):
        with pytest.raises(UsageError, match="whole number"):
            given.seed(bad)


@pytest.mark.parametrize("parse", [given.parse_json, given.parse_yaml])
@pytest.mark.parametrize(
    "text", ["[" * 3000, "[" * 3000 + "]" * 3000, "[" * 200 + "]" * 200, "9" * 5000, '"', "{a"]
)
def test_texts_that_cannot_be_read_raise_one_kind_of_error(parse: Any, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_good_texts_are_read() -> None:
    deep = "[" * 60 + "]" * 60
    assert given.parse_json(deep) == given.parse_yaml(deep) == json.loads(deep)
    assert given.parse_json("9" * 4000) == 10**4000 - 1
    with pytest.raises(ValueError, match="UTF-8"):
        given.parse_json(b'"\xff"')
    with pytest.raises(ValueError):
        given.parse_yaml("2024-99-99")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_inference_steps", 0),
        ("height", 1.5),
        ("width", "wide"),
        ("guidance_scale", float("nan")),
        ("num_frames", True),
        ("eta", {1, 2}),
        ("eta", float("inf")),
        ("eta", b"x"),
    ],
)
def test_arguments_of_a_call_are_plain_and_in_range(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        given.call_argument(key, value)


def test_whole_numbers_of_any_length() -> None:
    parse = given.whole_argument("--n", 1, 9)
    assert parse(" 7 ") == 7
    for bad in ("0", "10", "²", "x", "", "9" * 5000, "-1", "1.0"):
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            parse(bad)
        assert len(str(caught.value)) < 200


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert given.printable("a\x1b[31m\nü\u202e") == "a\\x1b[31m\nü\\u202e"


COMMANDS = {
    "eval": ["{model}", "--out", "{out}"],
    "tune": ["{model}", "--psnr", "30", "--out", "{out}"],
    "finetune": ["{model}", "--out", "{out}"],
    "generate": ["{model}", "--jobs", "{jobs}", "--out", "{out}"],
    "doctor": ["{model}"],
    "export": ["published:scm-8", "--to", "json", "--model", "{model}", "--out", "{out}"],
    "report": ["{out}"],
}


def run(command: str, places: dict[str, str], *options: str) -> int:
    filled = [part.format(**places) for part in COMMANDS[command]]
    try:
        return main([command, *filled, *options])
    except SystemExit as error:
        return int(error.code or 0)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("odd", ["x" * 5000, "~nouser/x", "a\0b", "", "no/such/place", "\udcff"])
@pytest.mark.parametrize("place", ["model", "jobs", "out"])
def test_odd_paths_are_one_line_in_every_command(
    command: str, odd: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "jobs.txt").write_text("a\n")
    places = {"model": "no/model", "jobs": str(tmp_path / "jobs.txt"), "out": str(tmp_path / "out")}
    if place == "out" and odd == "no/such/place":
        odd = str(tmp_path / "jobs.txt" / "out")  # in a file
    assert run(command, {**places, place: odd}) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "error:" in said[0] and len(said[0]) < 800
    assert os.listdir(tmp_path) == ["jobs.txt"]


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("eval", ("--call", "num_inference_steps=0"), "num_inference_steps is 0"),
        ("generate", ("--call", "num_inference_steps=0"), "num_inference_steps is 0"),
        ("generate", ("--call", "eta=" + "[" * 3000), "--call eta"),
        ("eval", ("--seeds", "9" * 23), "--seeds must be"),
        ("generate", ("--seeds", "9" * 23), "--seeds must be"),
        ("tune", ("--seed", "9" * 23), "--seed"),
        ("finetune", ("--seed", "-1"), "--seed"),
        *((c, ("--device", d), "--device") for c in ("eval", "tune", "finetune", "generate")
          for d in ("meta", "mps", "cuda:99", "\n")),
    ],
)  # fmt: skip
def test_what_no_command_can_use_is_said_before_anything_is_made(
    command: str,
    options: tuple[str, ...],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    places = {name: str(tmp_path / name) for name in ("model", "jobs", "out")}
    assert run(command, places, *options) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1 and os.listdir(tmp_path) == []


def test_a_plot_goes_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for png in ("", str(tmp_path)):
        assert run("report", {"out": str(tmp_path)}, "--png", png) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and "--png" in said[0]


def test_what_the_system_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", refuse)
    assert run("doctor", {"model": str(tmp_path)}) == 2
    said = capsys.readouterr().err
    assert "Permission denied" in said and str(tmp_path) in said and "Traceback" not in said


def test_all_of_our_errors_share_a_base() -> None:
    assert issubclass(ConfigError, DitaccelError) and issubclass(UsageError, DitaccelError)
