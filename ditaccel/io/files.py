"""Files that survive a kill: written as a whole or not at all, and lines that are only added."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import UsageError
from .given import parse_json

DRAFT = ".draft"


def plain(value: Any) -> Any:
    """A value as strict JSON holds it: NaN and infinity become None, numpy becomes Python."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def unwritten(path: Path, error: OSError) -> UsageError:
    """The line to show for a file that cannot be written."""
    return UsageError(
        f"cannot write {path} ({error.strerror}); make room or choose another folder, then run the "
        "same command again"
    )


def write_atomically(
    path: Path, write: Callable[[IO[bytes]], Any], drafts: Path | None = None
) -> None:
    """Let `write` fill a file that appears under its name when it is complete and on the disk.

    Args:
        path: the file.
        write: gets the open draft.
        drafts: folder of the draft on the same file system, by default the file's own; what a kill
            leaves there is somebody's to sweep.

    Raises:
        UsageError: the disk is full or not writable; nothing is left behind.
    """
    draft = (drafts or path.parent) / f".{path.name}.{os.getpid()}{DRAFT}"
    try:
        if drafts is None:
            path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # Only now: where the folder of drafts is gone, nothing is made anew in its place.
        path.parent.mkdir(parents=drafts is None, exist_ok=True)
        os.replace(draft, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritten(path, error) from error
        raise


def write_json(path: Path, data: Any, drafts: Path | None = None) -> None:
    """Write a JSON file as a whole or not at all; for `drafts` see `write_atomically`."""
    text = json.dumps(plain(data), indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()), drafts)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UsageError: missing or damaged.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path} is missing: {path.parent} holds no finished run") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is damaged ({_reason(error)}); delete the folder or choose another one"
        ) from error


def _reason(error: Exception) -> str:
    """What ails a JSON file, in a line that a terminal can show."""
    if isinstance(error, OSError):
        return error.strerror or "unreadable"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    return str(error).split("\n")[0].split("; use sys")[0]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file; a half-written last line (a killed run's) is left out.

    Raises:
        UsageError: any other line is damaged, with its number.
    """
    return [data for _, data in numbered_lines(path)]


def numbered_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """As `read_lines`, each line with its number.

    Raises:
        UsageError: see `read_lines`.
    """
    if not path.exists():
        return []
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from error
    lines = raw.split(b"\n")
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = parse_json(line)
            if not isinstance(data, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise UsageError(
                f"{path}, line {number} is damaged; delete that line to have it measured again"
            ) from error
        found.append((number, data))
    return found


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add one line to a JSON-lines file, on the disk before this returns.

    Raises:
        UsageError: the disk is full or not writable.
    """
    append_lines(path, [line])


def append_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Add lines to a JSON-lines file in one write: a kill leaves all of them or none.

    Raises:
        UsageError: the disk is full or not writable.
    """
    text = "".join(json.dumps(plain(line), allow_nan=False) + "\n" for line in lines)
    try:
        with path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritten(path, error) from error


def mend_lines(path: Path) -> None:
    """Cut a half-written last line off, so that the next one begins on its own line."""
    if not path.exists():
        return
    raw = path.read_bytes()
    if raw and not raw.endswith(b"\n"):
        read_lines(path)  # raises if more than the last line is damaged
        keep = raw.rfind(b"\n") + 1
        with path.open("rb+") as file:
            file.truncate(keep)
