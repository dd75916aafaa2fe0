"""What a user hands over as text: paths, devices, seeds, JSON and YAML, each checked in one place.

Every fault of such a text is a `UsageError` (or, from the parsers, a `ValueError`) in one line, so
no command needs to know what else Python, the system or torch raise for it.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..errors import ConfigError, UsageError

if TYPE_CHECKING:
    import torch

MAX_SEED = (1 << 63) - 1
# Of one name in a path, and of a whole path: what common file systems take.
_NAME_BYTES, _PATH_BYTES = 255, 4095
_SHOWN = 80
# Of lists and mappings within each other: far above what data needs, far below Python's own limit.
MAX_DEPTH = 64
# Arguments of a pipeline call whose range is known: low, high, whole numbers only.
RANGES: dict[str, tuple[float, float, bool]] = {
    "height": (1, 1 << 14, True),
    "width": (1, 1 << 14, True),
    "num_frames": (1, 1 << 14, True),
    "num_inference_steps": (1, 10_000, True),
    "guidance_scale": (-1000, 1000, False),
}


def shown(value: Any, most: int = _SHOWN) -> str:
    """A value as it may stand in a one-line message: `repr`, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        text = f"<{type(value).__name__}>"  # a number of thousands of digits, or deep nesting
    return text if len(text) <= most else f"{text[: most - 1]}…"


def printable(text: str) -> str:
    """Text that does nothing to a terminal: control characters but line ends are spelled out."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def one_line(text: str, most: int = 500) -> str:
    """Text as one line of bounded length that does nothing to a terminal."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= most else f"{line[:most]}…"


def suggest(word: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown word: the nearest known one, and all of them."""
    known = list(known)
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lower, n=1)
    hint = f"; did you mean {lower[near[0]]!r}?" if near else "."
    return f"{hint} Known: {', '.join(known) or 'none'}"


def path(text: str | os.PathLike[str]) -> Path:
    """A path as a user writes it, `~` expanded; whether something is there is not looked at.

    Raises:
        UsageError: no file system takes it (empty, a NUL, too long), or `~name` has no home.
    """
    written = os.fspath(text)
    if not written:
        raise UsageError("the path is empty; give the name of a file or folder")
    if "\0" in written:
        raise UsageError(f"{shown(written)}: a path cannot hold a NUL character")
    try:
        found = Path(written).expanduser()
    except RuntimeError:
        user = shown(written.partition("/")[0])
        raise UsageError(f"{shown(written)}: {user} has no home folder here") from None
    try:
        size = len(os.fsencode(found))
    except UnicodeEncodeError:
        raise UsageError(f"{shown(written)}: a path cannot hold half a character") from None
    longest = max((len(os.fsencode(part)) for part in found.parts), default=0)
    if size > _PATH_BYTES or longest > _NAME_BYTES:
        raise UsageError(
            f"{shown(written)}: too long for a path ({size} bytes; a name in it may have "
            f"{_NAME_BYTES}, all of it {_PATH_BYTES})"
        )
    return found


def output_file(text: str | os.PathLike[str], argument: str = "out") -> Path:
    """The path of a file that a command will write.

    Raises:
        UsageError: it is not a path, is a folder, or lies in something that is not a folder.
    """
    found = path(text)
    if found.is_dir() or os.fspath(text).endswith(os.sep):
        raise UsageError(f"{found}: this is a folder; name a file", argument)
    return output_folder(found.parent, argument) / found.name


def output_folder(text: str | os.PathLike[str], argument: str = "out") -> Path:
    """The path of a folder that a command will make when it has something to put there.

    Raises:
        UsageError: it is not a path, is or lies in something that is not a folder, or may not be
            written.
    """
    found = path(text)
    there = next((p for p in (found, *found.parents) if p.exists()), Path())
    if not there.is_dir():
        raise UsageError(f"{found}: {there} is a file and not a folder", argument)
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{found}: {there} cannot be written; choose another place", argument)
    return found


def _device(text: str) -> torch.device:
    import torch

    try:
        chosen = torch.device(text)
    except (RuntimeError, ValueError, OverflowError):
        name = shown(text)[1:-1]
        raise UsageError(
            f"{name}: torch knows no such device; give cpu, cuda or cuda:1", "device"
        ) from None
    if chosen.type == "meta":
        raise UsageError("meta: it computes nothing; give cpu or a GPU", "device")
    return chosen


def device_type(text: str) -> str:
    """`cpu`, `cuda`, … of a device's text, which may be another machine's.

    Raises:
        UsageError: torch knows no such device, or holds no numbers there (`meta`).
    """
    return _device(text).type


def device(text: str) -> str:
    """The text of a torch device that this machine has.

    Raises:
        UsageError: torch knows no such device, holds no numbers there (`meta`), or sees none here.
    """
    if text == "cpu":
        return text
    import torch

    chosen = _device(text)
    if chosen.type == "cpu":
        return text
    name = "GPU" if chosen.type == "cuda" else f"{chosen.type} device"
    try:
        module = torch.get_device_module(chosen.type)
        if not module.is_available():
            raise UsageError(f"{text}: torch sees no {name} here; give cpu", "device")
        count = int(module.device_count())
    except (RuntimeError, AttributeError, AssertionError):
        raise UsageError(f"{text}: torch sees no {name} here; give cpu", "device") from None
    if chosen.index is not None and chosen.index >= count:
        raise UsageError(f"{text}: torch sees {count} here, numbered from 0", "device")
    return text


def seed(value: Any, name: str = "seed") -> int:
    """A seed that every generator takes.

    Raises:
        UsageError: it is not a whole number from 0 to 2⁶³ - 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SEED:
        raise UsageError(f"is {shown(value)}; it must be a whole number, 0 to {MAX_SEED}", name)
    return value


def call_argument(key: str, value: Any, argument: str = "call") -> Any:
    """An argument of a pipeline call: a plain value, the common ones within their range.

    Raises:
        ConfigError: it is not.
    """
    if key in RANGES and value is not None:
        low, high, whole = RANGES[key]
        number = value
        if isinstance(value, str):
            try:
                number = int(value) if whole else float(value)
            except ValueError:
                number = None
        kinds: tuple[type, ...] = (int,) if whole else (int, float)
        good = isinstance(number, kinds) and not isinstance(number, bool)
        if not good or not low <= number <= high:
            kind = "a whole number" if whole else "a number"
            raise ConfigError(
                f"{key} is {shown(value)}; it must be {kind}, {low:g} to {high:g}", argument
            )
        return number
    if not is_plain(value):
        raise ConfigError(
            f"{key} is {shown(value)}; it must be a number, text, true, false, null, or a list or "
            "mapping of those",
            argument,
        )
    return value


def whole_argument(name: str, low: int, high: int = MAX_SEED) -> Callable[[str], int]:
    """A parser for argparse: whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        written = text.strip()
        # The system's limit on digits, and digits that are none to `int` (superscripts)
        number = int(written) if written.isdecimal() and len(written) < 100 else low - 1
        if not low <= number <= high:
            to = f"{low} to {high}" if high < MAX_SEED else f">= {low}"
            raise argparse.ArgumentTypeError(f"{name} must be a whole number {to}: {shown(text)}")
        return number

    return parse


def is_plain(value: Any) -> bool:
    """Whether every reader of JSON takes a value as it is (numbers of 64 bits)."""
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and is_plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    if isinstance(value, float):
        return value - value == 0  # neither NaN nor infinite
    if isinstance(value, int):
        return -MAX_SEED <= value <= MAX_SEED
    return value is None or isinstance(value, str)


def is_deep(value: Any, most: int = MAX_DEPTH) -> bool:
    """Whether lists and mappings are nested more than `most` deep."""
    level, depth = [value], 0
    while level:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list, tuple))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list, tuple))
        ]
        if depth > most:
            return True
    return False


def parse_json(text: str | bytes) -> Any:
    """A JSON value.

    Raises:
        ValueError: no valid JSON, nested too deeply, or a number of thousands of digits; in one
            line.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError:
        raise
    except ValueError:
        raise ValueError("a number has too many digits") from None
    if is_deep(value):
        raise ValueError("nested too deeply")
    return value


def parse_yaml(text: str) -> Any:
    """A YAML value.

    Raises:
        ValueError: no valid YAML, nested too deeply, or a number of thousands of digits; in one
            line.
    """
    try:
        value = yaml.safe_load(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        # PyYAML's own constructors: impossible dates, numbers of thousands of digits, odd keys
        raise ValueError(str(error).splitlines()[0][:200]) from None
    if is_deep(value):
        raise ValueError("nested too deeply")
    return value


def seeds_of(values: Iterable[Any], name: str = "seeds") -> tuple[int, ...]:
    """Several seeds; see `seed`."""
    return tuple(seed(value, name) for value in values)


def lines(text: str) -> list[str]:
    """Lines as editors end them: at LF, CR or both.

    Never at the other characters where `str.splitlines` ends one (vertical tab, form feed, U+2028
    …): they come into texts by pasting, and belong to them.
    """
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def prompt_of(line: str) -> str | None:
    """The prompt on a line; None for an empty line and for a comment (`#` in front).

    A prompt that begins with `#` is written `\\#`.
    """
    line = line.strip()
    if not line or line.startswith("#"):
        return None
    return line[1:] if line.startswith("\\#") else line
