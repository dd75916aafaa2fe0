"""What the documents show is run as a reader pastes it."""

import os
import re
from pathlib import Path

import documents
import pytest
from ditaccel.eval import specs
from documents import ROOT, Block

from ditaccel import cli, config

DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for room in (".", "samples", "eval", "ditaccel", "kernels", "pipelines")
    for path in (ROOT.glob("*.md") if room == "." else (ROOT / room).rglob("*.md"))
)
PYTHON = [b for path in DOCUMENTS for b in documents.blocks(path) if b.language == "python"]
SHELL = [
    b for path in DOCUMENTS for b in documents.blocks(path) if b.language in ("", "bash", "sh")
]
COMMANDS = [
    pytest.param(words, id=f"{block} {words[1]}")
    for block in SHELL
    for words in documents.commands(block)
    if words[0] == "ditaccel"
]
README = [block for block in PYTHON if block.path == "README.md"]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a clone, in which nothing of the real one can be overwritten."""
    for name in ("samples", "eval", "Makefile"):
        os.symlink(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _paste(block: Block, names: dict) -> None:
    exec(compile(block.text, str(block), "exec"), names)


def test_readme_opens_with_python() -> None:
    assert README and "from_pretrained" in README[0].text


def test_readme_runs_from_top_to_bottom(desk: Path) -> None:
    """One session, each block pasted behind the one before."""
    names: dict = {}
    for block in README:
        _paste(block, names)


@pytest.mark.slow
@pytest.mark.parametrize("block", README[1:], ids=str)
def test_each_block_of_the_readme_runs_behind_the_first(desk: Path, block: Block) -> None:
    """A reader who takes one block needs the first, which loads the pipeline, and nothing else."""
    names: dict = {}
    _paste(README[0], names)
    _paste(block, names)


@pytest.mark.parametrize("words", COMMANDS)
def test_command_lines_are_understood(words: list[str]) -> None:
    """Options exist, configs are readable, files are there."""
    args = cli._parser(words[1])
    parsed = vars(args.parse_args(words[1:]))
    for name in ("model", "jobs"):
        value = parsed.get(name)
        if isinstance(value, str) and value.startswith("samples/"):
            assert (ROOT / value).exists(), value
    given = parsed.get("config") or []
    for text in [given] if isinstance(given, str) else given:
        _read_config(words[1], text)


def _read_config(command: str, text: str) -> None:
    for path in re.findall(r"samples/[\w/.-]+", text):
        assert (ROOT / path).exists(), path
    if command == "eval":
        assert specs.parse_config(text)
    elif text != "none":
        config.resolve(text, "flux")
