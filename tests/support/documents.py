"""Code blocks of the project's documents, as a reader finds them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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


def blocks(path: str) -> list[Block]:
    """All fenced blocks of a document."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return [
        Block(path, text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in _FENCE.finditer(text)
    ]


def commands(block: Block) -> list[list[str]]:
    """Command lines of a shell block, split as a shell splits them; comments are left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words]
