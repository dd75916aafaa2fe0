"""What the project's documents show, as a reader finds it: code blocks, commands and links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (".docs", "ditaccel", "eval", "kernels", "pipelines", "samples", "tests")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_SET = re.compile(r"(\w+)=(.*)")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        path: the document, from the top of the repository.
        line: of its opening fence, from 1.
        language: as the fence says it, "" where it says none.
        text: what stands between the fences.
    """

    path: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


def documents() -> list[str]:
    """All Markdown files of the repository, from its top."""
    found = [*ROOT.glob("*.md"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.md"))]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def read(path: str) -> str:
    """The text of a document."""
    return (ROOT / path).read_text(encoding="utf-8")


def blocks(path: str) -> list[Block]:
    """All fenced blocks of a document."""
    text = read(path)
    return [
        Block(path, text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in _FENCE.finditer(text)
    ]


def prose(path: str) -> str:
    """A document without its fenced blocks."""
    return _FENCE.sub("", read(path))


def commands(given: list[Block]) -> Iterator[tuple[Block, list[str]]]:
    """Commands of a document's shell blocks, as a shell would split them, each with its block.

    Comments are left out, and a variable that an earlier line sets (`T="python train.py"`) is
    replaced by its value.
    """
    variables: dict[str, str] = {}
    for block in given:
        for line in block.text.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if word != ";":
                    words += _expanded(word, variables)
                    continue
                if words and (found := _SET.fullmatch(words[0])):
                    variables[found[1]] = found[2]
                elif words:
                    yield block, words
                words = []


def _expanded(word: str, variables: dict[str, str]) -> list[str]:
    return shlex.split(variables[word[1:]]) if word[1:] in variables and word[0] == "$" else [word]


def inline_commands(path: str) -> list[list[str]]:
    """`ditaccel …` in the running text; they may leave required arguments out."""
    spans = (" ".join(span.split()) for span in _SPAN.findall(prose(path)))
    return [shlex.split(span) for span in spans if re.match(r"ditaccel [a-z]", span)]


def links(path: str) -> list[tuple[str, str]]:
    """Links to files of the repository: each with its anchor, "" where it has none."""
    found = (link for link in _LINK.findall(prose(path)) if "://" not in link)
    return [(link.partition("#")[0], link.partition("#")[2]) for link in found]


def anchors(path: str) -> set[str]:
    """What the headings of a document can be linked as on GitHub."""
    kept = (re.sub(r"[^\w\- ]", "", h.strip().lower()) for h in _HEADING.findall(prose(path)))
    return {heading.replace(" ", "-") for heading in kept}
