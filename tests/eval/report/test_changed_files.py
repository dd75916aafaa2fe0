"""Result files that somebody changed: our own one-line errors or a page, and nothing else.

Each case changes one thing in one file of a good evaluation: a value becomes another kind, a key
goes, bytes are cut, flipped or put in.
"""

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ditaccel.eval.summary.summarise import summarise

from ditaccel.cli import main
from ditaccel.errors import DitaccelError

CONFIGS = ("dense", "other-seed", "steps-10", "steps-7", "taylorseer-3", "cg-0", "cg-2", "peer-1")
FILES = ("run.json", "summary.json", "results.jsonl", "failures.jsonl", "warmups.jsonl")
ATTACK = "<script>alert(1)</script><img src=https://example.org/x onerror=alert(2)>"
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, 1e-300, 1e308, -1e15, 10**30, 10**400, float("nan"),
    float("inf"), "", "x", "\ud800 cut", "a\nb", "\0", "9" * 5000, ATTACK, "../../../etc/passwd",
    "/etc/passwd", [], [None], [[[]]], {}, {"": {}}, {ATTACK: ATTACK}, [1, 2, 3],
)  # fmt: skip


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every place in a JSON value, down to the leaves."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value[:6]):
            yield from places(item, (*path, index))


def change_value(rng: random.Random, text: str) -> str:
    """One place of the JSON gets another value, loses its key, or is nested thousands deep."""
    data = json.loads(text)
    path = rng.choice([p for p in places(data) if p])
    where = data
    for key in path[:-1]:
        where = where[key]
    way = rng.random()
    if way < 0.15:
        del where[path[-1]]
    elif way < 0.2:
        return json.dumps(data).replace(json.dumps(where[path[-1]]), "[" * 50_000 + "]" * 50_000, 1)
    else:
        where[path[-1]] = rng.choice(VALUES)
    return json.dumps(data)


def change_bytes(rng: random.Random, raw: bytes) -> bytes:
    """Some bytes are cut off, flipped or put in."""
    at = rng.randrange(len(raw))
    way = rng.randrange(3)
    if way == 0:
        return raw[:at]
    if way == 1:
        return raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]
    return (
        raw[:at]
        + rng.choice([b"\0", b"\xff", b"[", b"}", b'"', b"\n", b"-", b"9" * 400])
        + raw[at:]
    )


def mutate(rng: random.Random, path: Path) -> None:
    """Change one thing in a file."""
    raw = path.read_bytes()
    if rng.random() < 0.3:
        path.write_bytes(change_bytes(rng, raw))
    elif path.suffix == ".json":
        path.write_text(change_value(rng, raw.decode()))
    else:
        lines = raw.decode().splitlines()
        number = rng.randrange(len(lines))
        lines[number] = change_value(rng, lines[number])
        path.write_text("\n".join(lines) + "\n")


def check_page(text: str) -> None:
    """No script but ours runs, and nothing is loaded."""
    assert text.count("<script") == 1
    body = re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL)
    for tag in re.findall(r"<[a-z][^>]*>", body):
        assert not re.search(r"\son[a-z]+=", re.sub(r'"[^"]*"', '""', tag)), tag[:200]
        for value in re.findall(r'\s(?:src|srcset|poster|data|action)="([^"]*)"', tag):
            assert value.startswith("data:"), tag[:200]
        if tag.startswith("<link"):
            assert 'href="data:,"' in tag


@pytest.fixture(scope="module")
def good(write_evaluation: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "run"
    write_evaluation(folder, video=False, samples=2, size=8, configs=CONFIGS)
    failure = {"config": "cg-2", "sample": "p009-s0", "error": "out of memory"}
    (folder / "failures.jsonl").write_text(json.dumps(failure) + "\n")
    warmup = {"config": "dense", "seconds": 1.0, "kept_bytes": 5}
    (folder / "warmups.jsonl").write_text(json.dumps(warmup) + "\n")
    return folder


def run(good: Path, folder: Path, seeds: range, capsys: pytest.CaptureFixture[str]) -> list[int]:
    shutil.copytree(good, folder)
    codes = []
    for seed in seeds:
        rng = random.Random(seed)
        name = rng.choice(FILES)
        for file in FILES:
            shutil.copy(good / file, folder / file)
        (folder / "report.html").unlink(missing_ok=True)
        mutate(rng, folder / name)
        code = main(["report", str(folder), *(["--png", str(folder / "x.png")] * (seed % 9 == 0))])
        said = capsys.readouterr()
        where = f"seed {seed}, {name}: {said.err[-600:]}"
        assert code in (0, 2), where
        assert "Traceback" not in said.err, where
        if code == 2:
            (line,) = said.err.strip().splitlines()
            assert line.startswith("ditaccel: error:") and len(line) < 700, where
            assert str(folder) in line, where
            assert not (folder / "report.html").exists(), where
        else:
            check_page((folder / "report.html").read_text(encoding="utf-8"))
        try:
            summarise(folder)
        except DitaccelError as error:
            assert "\n" not in str(error), where
        codes.append(code)
    return codes


def test_changed_files_end_in_a_page_or_one_line(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = run(good, tmp_path / "run", range(150), capsys)
    assert 0.2 < codes.count(2) / len(codes) < 0.95  # the cases do bite, and some are harmless


@pytest.mark.slow
def test_many_changed_files(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(good, tmp_path / "run", range(1000, 5000), capsys)


def test_an_unchanged_one_is_reported(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(good, tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 0
    check_page((tmp_path / "run" / "report.html").read_text())


@pytest.mark.parametrize("path", ["/etc/passwd", "../../secret.npz", "media/../../x.npz", ""])
def test_media_outside_of_the_folder_are_never_opened(
    good: Path, tmp_path: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "run"))
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    lines[3]["media"] = path
    (folder / "results.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert main(["report", str(folder)]) == 2
    assert "line 4 is damaged: media must be a path inside" in capsys.readouterr().err
