"""What the documents show is run as a reader pastes it; commands, links and sizes are checked."""

import argparse
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import documents
import pytest
from diffusers import DiffusionPipeline, FluxPipeline
from ditaccel.eval import specs
from documents import ROOT, Block

from ditaccel import cli, config, families, methods, pipelines

DOCUMENTS = documents.documents()
BLOCKS = {path: documents.blocks(path) for path in DOCUMENTS}
SHELL = {
    path: [b for b in found if b.language in ("", "bash", "sh")] for path, found in BLOCKS.items()
}
COMMANDS = [
    pytest.param(words, id=f"{block} {' '.join(words[:2])}")
    for path in DOCUMENTS
    for block, words in documents.commands(SHELL[path])
]
SESSIONS = {
    path: [block for block in found if block.language == "python"]
    for path, found in BLOCKS.items()
    if any(block.language == "python" for block in found)
}
LONG = ("eval/README.md",)
# What a reader downloads, and the sample that stands for it here.
HUB = {"black-forest-labs/FLUX.1-dev": "samples/models/shapes-flux"}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a clone, in which nothing of the real one can be overwritten.

    Models of the Hub are stood for by samples of the same class, and stay on the CPU.
    """
    for name in ("samples", "eval", "Makefile"):
        os.symlink(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    # (what a document registers is gone afterwards)
    monkeypatch.setattr(pipelines, "_REGISTERED", dict(pipelines._REGISTERED))
    load = DiffusionPipeline.from_pretrained.__func__

    def stand_in(cls: type, name: str, **options: Any) -> Any:
        if name not in HUB:
            return load(cls, name, **options)
        pipe = load(cls, HUB[name])
        pipe.default_sample_size = 64 // pipe.vae_scale_factor
        pipe.to = lambda device: pipe
        return pipe

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(stand_in))
    return tmp_path


@pytest.fixture
def small_desk(path: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The desk with one block of each kind in Flux: what is shown needs no good pictures.

    Adapters fit the whole model alone.
    """
    if path.startswith("samples/adapters/"):
        return
    load = DiffusionPipeline.from_pretrained.__func__

    def shortened(cls: type, name: str, **options: Any) -> Any:
        pipe = load(cls, name, **options)
        for blocks in ("transformer_blocks", "single_transformer_blocks"):
            if isinstance(pipe, FluxPipeline):
                del getattr(pipe.transformer, blocks)[1:]
        return pipe

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(shortened))


def _paste(block: Block, names: dict) -> None:
    exec(compile(block.text, str(block), "exec"), names)


def test_readme_opens_with_python() -> None:
    assert "from_pretrained" in SESSIONS["README.md"][0].text


def test_readme_is_short() -> None:
    assert len(documents.read("README.md").encode()) <= 9000


def test_readme_counts_what_there_is() -> None:
    kinds = [config.kind for config in methods().values()]
    said = re.search(
        r"(\d+) caching methods .*?, (\d+) of sparse attention and (\d+) families",
        documents.read("README.md"),
        re.DOTALL,
    )
    assert said is not None
    there = (kinds.count("cache"), kinds.count("attention"), len(families()))
    assert tuple(map(int, said.groups())) == there


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=pytest.mark.slow) if p in LONG else p for p in SESSIONS]
)
def test_document_runs_from_top_to_bottom(small_desk: None, path: str) -> None:
    """One session, each block pasted after the one before."""
    names: dict = {}
    for block in SESSIONS[path]:
        _paste(block, names)


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for found in SESSIONS.values() for b in found[1:]], ids=str)
def test_each_block_runs_after_the_first(desk: Path, block: Block) -> None:
    """A reader who takes one block needs the first, which loads the pipeline, and nothing else."""
    names: dict = {}
    _paste(SESSIONS[block.path][0], names)
    _paste(block, names)


@pytest.mark.slow
def test_readme_shows_what_the_command_prints(desk: Path) -> None:
    """Word for word; figures are those of the machine that it names."""
    command = [sys.executable, "-P", "samples/accelerate_wan.py", "a red circle moving right"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    shown = next(block.text for block in BLOCKS["README.md"] if block.language == "text")

    def words(text: str) -> list[str]:
        return re.sub(r"[\d.#]+( [kM]?B| us| ms| s)?", "0", text).splitlines()

    assert words(printed) == words(shown)


@pytest.mark.parametrize("block", [b for found in SHELL.values() for b in found], ids=str)
def test_shell_blocks_parse(block: Block) -> None:
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_are_understood(words: list[str]) -> None:
    """Options exist, configs are readable, files and targets are there."""
    if words[0] == "ditaccel":
        _understand(words[1:])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "pip":
        _check_extras(words)
    elif words[0] in ("python", "sbatch") or words[0].startswith("."):
        file = words[0] if words[0].startswith(".") else words[1]
        assert (ROOT / file).is_file(), file
    else:
        assert words[0] in ("export", "git", "cd", "pre-commit"), words


def _understand(words: list[str]) -> None:
    parsed = vars(cli._parser(words[0]).parse_args(words))
    for name in ("model", "jobs"):
        value = parsed.get(name)
        if isinstance(value, str) and value.startswith("samples/"):
            assert (ROOT / value).exists(), value
    given = parsed.get("config") or []
    for text in [given] if isinstance(given, str) else given:
        _read_config(words[0], text)


def _read_config(command: str, text: str) -> None:
    for path in re.findall(r"samples/[\w/.-]+", text):
        assert (ROOT / path).exists(), path
    if command == "eval":
        assert specs.parse_config(text)
    elif text != "none":
        config.resolve(text, "flux")


def _check_extras(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for names in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(names.split(",")) <= set(extras["optional-dependencies"]), names


@pytest.mark.parametrize("path", DOCUMENTS)
def test_commands_in_the_text_exist(path: str) -> None:
    """With all the options that are named; required arguments may be left out."""
    for words in documents.inline_commands(path):
        flags = _flags(cli._parser(words[1]), words[1:])
        unknown = [w for w in words if w.startswith("--") and w.partition("=")[0] not in flags]
        assert not unknown, f"{' '.join(words)}: {unknown}"


def _flags(parser: argparse.ArgumentParser, words: list[str]) -> set[str]:
    """Options of a parser, and of the sub-parsers that these words go through."""
    flags = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and words:
            named = next((word for word in words if word in action.choices), None)
            assert named is not None or words[0].startswith("-"), f"no such command: {words[0]}"
            if named is not None:
                rest = words[words.index(named) + 1 :]
                flags |= _flags(action.choices[named], rest)
    return flags


@pytest.mark.parametrize("path", DOCUMENTS)
def test_links_lead_somewhere(path: str) -> None:
    """To a file of the repository, and to a heading in it."""
    for file, anchor in documents.links(path):
        target = (ROOT / path).parent / file if file else ROOT / path
        assert target.exists(), f"{path}: {file}"
        if anchor:
            there = str(target.resolve().relative_to(ROOT))
            assert anchor in documents.anchors(there), f"{path}: {file}#{anchor}"
