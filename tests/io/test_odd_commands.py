"""Odd command lines over all subcommands: one line and exit code 2, and nothing is left behind."""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path

import pytest

from ditaccel import cli

ODD = [
    *("", " ", "-", "--", ".", "..", "/", "~", "~nouser/x", "a\0b", "\udcff", "\ud83d", "x" * 5000),
    *("a/" * 3000, "0", "-1", "1", "9" * 23, "9" * 5000, "1e999", "nan", "inf", "²", "0x10", "1.5"),
    *("true", "null", "meta", "mps", "cuda:99", "cpu:x", "auto", "\n", "\x1b[31m", "{", "[" * 3000),
    *("{prompt", "{0}", "../x", "a=b", "a=", "=b", "=", "num_inference_steps=0", "height=9e9"),
    *("x=" + "[" * 3000, "guidance_scale=nan", ",", "0,0", "0,,1", "1/0", "2/2", "mp4,mp4", "none"),
    *("balanced", "nonsense", "sla:critical=x", "taylorseer:interval=" + "9" * 5000, "a|b", "&"),
    *("steps:0", "peer/x:y=z", "os:system", "nothing:there", "/proc/self/mem", "/dev/null/x"),
    *("http://[x", "C:\\x", "%s%n", "$(id)", "'", '"', "--help=1", "🐈" * 64, "x.yaml", "x.json"),
]
# What computes without a model is no place for luck.
WITHOUT = {("bench", "attention"), ("bench", "sparse_linear")}


def parsers() -> dict[tuple[str, ...], argparse.ArgumentParser]:
    """Every subcommand, and what it takes."""
    found = {}
    for name in cli.COMMANDS:
        top = cli._parser(name)
        (group,) = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
        chosen = group.choices[name]
        inner = [a for a in chosen._actions if isinstance(a, argparse._SubParsersAction)]
        for part, parser in inner[0].choices.items() if inner else [("", chosen)]:
            words = (name, part) if part else (name,)
            if words not in WITHOUT:
                found[words] = parser
    return found


COMMANDS = parsers()


def command_line(words: tuple[str, ...], draw: random.Random, places: dict[str, str]) -> list[str]:
    """A command line with what it needs, some of it odd, and some odd options."""
    line = list(words)
    options = [a for a in COMMANDS[words]._actions if a.option_strings and a.dest != "help"]
    for action in COMMANDS[words]._actions:
        if not action.option_strings:
            odd = draw.random() < 0.3
            line.append(draw.choice(ODD) if odd else places.get(action.dest, places["model"]))
        elif action.required and draw.random() < 0.9:
            odd = draw.random() < 0.3
            line += [
                action.option_strings[0],
                draw.choice(ODD) if odd else places.get(action.dest, "1"),
            ]
    for action in draw.sample(options, min(len(options), draw.randrange(4))):
        line.append(draw.choice(action.option_strings))
        if action.nargs != 0:
            line.append(draw.choice([*ODD, *map(str, action.choices or ())]))
    if draw.random() < 0.1:
        line.insert(draw.randrange(len(line) + 1), draw.choice(ODD))
    return line


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("seed", range(2))
def test_odd_command_lines_end_in_one_line(
    words: tuple[str, ...],
    seed: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    draw = random.Random(f"{words} {seed}")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "jobs.txt").write_text("a\n")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    for _ in range(40):
        places = {
            "model": draw.choice([str(tmp_path / "damaged"), str(tmp_path / "none"), "no-model"]),
            "jobs": str(tmp_path / "jobs.txt"),
            "out": str(tmp_path / "out" / "x"),
            "folder": str(tmp_path / "none"),
        }
        line = command_line(words, draw, places)
        shown = json.dumps([word[:60] for word in line])
        try:
            code = cli.main(line)
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException as error:
            raise AssertionError(f"{shown}: {type(error).__name__}: {str(error)[:300]}") from error
        said = capsys.readouterr().err
        assert code in (0, 1, 2), shown
        assert "Traceback" not in said, shown
        errors = [text for text in said.splitlines() if "warning:" not in text]
        if code == 2:
            assert errors and "error:" in errors[-1] and len(errors) <= 3, (shown, said)
            assert len(errors[-1]) < 1200, shown
        left = sorted(os.listdir(tmp_path)), os.listdir(tmp_path / "here")
        assert left == (["damaged", "here", "jobs.txt"], []), (shown, left)
