"""`ditaccel report` on a job: its state, and a page that loads nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from mutations import mutate

from ditaccel.batch.folder import JobFolder
from ditaccel.cli import main

Generate = Callable[..., tuple[int, str, str]]
Jobs = Callable[..., Path]


class Page(HTMLParser):
    """What a page asks a browser for, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.links: list[str] = []
        self.cards: list[str] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("src"):
            self.sources.append(str(found["src"]))
        if tag == "a":
            self.links.append(str(found["href"]))
        if found.get("data-text"):
            self.cards.append(str(found["data-text"]))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def out(generate: Generate, jobs: Jobs, tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"class_label": 3, "seed": 5, "meta": {"split": "Test"}, "prompt": '<b>bold</b> & "x"'},
        {"class_label": 2, "seed": "<script>alert(1)</script>"},
    ]
    assert generate(jobs(3, rows))[0] == 3
    return tmp_path / "out"


def test_state_and_page(out: Path, capsys: Any) -> None:
    assert main(["report", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "4 of 5 items done, 1 failed, 0 left" in printed and "gallery.html" in printed
    page = Page(out / "gallery.html")
    assert page.sources and all(source.startswith("data:image/") for source in page.sources)
    assert len(page.cards) == 4 and any("seed 5" in c and "test" in c for c in page.cards)
    for link in page.links:
        assert link.startswith("#") or (out / link).exists(), link
    html = (out / "gallery.html").read_text()
    assert "<script>alert" not in html and "<b>bold" not in html
    assert "<b>bold</b>" in page.text  # shown as text
    order = [html.index(f'id="{part}"') for part in ("state", "failures", "outputs", "times")]
    assert order == sorted(order)


def test_state_as_json(out: Path, capsys: Any) -> None:
    assert main(["report", str(out), "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert (state["done"], state["failed"], state["left"], state["working"]) == (4, 1, 0, 0)
    assert state["seconds_per_item"] > 0


def test_a_job_of_an_older_version_is_read(out: Path, capsys: Any) -> None:
    """What it says of its runs has other names; the state is made of the items' own files."""
    for path in (out / "runs").glob("*.json"):
        facts = json.loads(path.read_text())
        facts["seconds_an_item"] = facts.pop("seconds_per_item")
        path.write_text(json.dumps(facts))
    assert list((out / "runs").glob("*.json"))
    assert main(["report", str(out), "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert state["done"] == 4 and "seconds_an_item" not in state


def test_a_job_at_work_has_a_state(out: Path, capsys: Any) -> None:
    """As another process sees it: an item is not there yet, and a worker is."""
    from ditaccel.batch.workers.claims import Claims

    folder = JobFolder(out)
    claims = Claims(folder, "run")
    folder.sidecar(folder.items()[0]).unlink()
    assert main(["report", str(out)]) == 0
    claims.close()
    printed = capsys.readouterr().out
    assert "3 of 5 items done, 1 failed, 1 left; 1 at work" in printed
    assert "left\n" in printed.split("at work")[1]


def test_the_wrong_folder_or_option_is_one_line(out: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["report", str(out), "--png", str(tmp_path / "x.png")]) == 2
    assert "--png is for evaluations" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2


def test_rows_that_were_not_asked_for_are_not_left(
    generate: Generate, jobs: Jobs, tmp_path: Path, capsys: Any
) -> None:
    path, out = jobs(8), tmp_path / "out"
    generate(path, "--limit", "2")
    assert main(["report", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 items done, 0 failed, 0 left" in printed and "6 more rows" in printed
    assert "rows not asked for" in (out / "gallery.html").read_text()
    generate(path, "--filter", "class_label=7")  # beside what was made before
    main(["report", str(out)])
    assert "3 of 3 items done" in capsys.readouterr().out
    generate(path)
    main(["report", str(out)])
    printed = capsys.readouterr().out
    assert "8 of 8 items done" in printed and "more rows" not in printed


@pytest.mark.parametrize("seed", range(4))
def test_changed_files_of_a_job_never_end_in_a_traceback(out: Path, capsys: Any, seed: int) -> None:
    """Values of other kinds, missing keys, deep nesting, cut files, in every file of the folder."""

    files = sorted(p for p in out.rglob("*.json*") if p.is_file())
    assert {"job.json", "manifest.jsonl"} <= {p.name for p in files}
    draw = random.Random(seed)
    for path in files:
        plain = path.read_bytes()
        for _ in range(12):
            path.write_bytes(mutate(plain, draw))
            code = main(["report", str(out)])
            said = capsys.readouterr().err
            assert code in (0, 2) and "Traceback" not in said
            assert code == 0 or len(said.splitlines()) == 1, said
        path.write_bytes(plain)
    assert main(["report", str(out)]) == 0
