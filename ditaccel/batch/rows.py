"""Raw rows into checked ones: every field has one name, one type and a range."""

from __future__ import annotations

import base64
import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from datetime import time as clock
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import ConfigError, UsageError
from ..io import given
from .names import check_name

ALIASES = {
    "text": "prompt",
    "negative": "negative_prompt",
    "frames": "num_frames",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "class": "class_label",
    "label": "class_label",
}
# What a row may not set through `call`: it is ours, or no plain value.
OWN = ("generator", "output_type", "return_dict", "prompt", "negative_prompt", "class_labels")
INPUTS = ("image", "video")
_REMOTE = ("http", "https")
# Of lists and mappings in a row: readers of results take no deeper ones.
_DEPTH = 8
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Row:
    """A checked row; None and empty mean that the row does not say.

    Attributes:
        row: number in the file.
        prompt: text, or class name.
        negative_prompt: of the unconditional branch.
        class_label: class number, or its name.
        seed: of the noise.
        call: arguments of the pipeline call: sizes, steps, guidance and what `call` holds.
        inputs: `image` and `video`: an absolute path or a URL.
        fps: frames a second of the file.
        name: of the file.
        config: an acceleration config of its own, as text.
        meta: columns of the user's own.
    """

    row: int
    prompt: str | None = None
    negative_prompt: str | None = None
    class_label: int | str | None = None
    seed: int | None = None
    call: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    fps: float | None = None
    name: str | None = None
    config: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{name} is {given.shown(value)}; it must be text")
    return value.strip()


def _whole(low: int, high: int) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        number: Any = value
        if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,100}(\.0*)?\s*", value):
            number = int(value.partition(".")[0])
        elif isinstance(value, (float, Decimal)) and math.isfinite(value) and value == int(value):
            number = int(value)  # parquet and spreadsheets turn whole numbers into floats
        if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
            raise ConfigError(
                f"{name} is {given.shown(value)}; it must be a whole number, {low} to {high}"
            )
        return number

    return read


def _number(low: float, high: float) -> Callable[[str, Any], float]:
    def read(name: str, value: Any) -> float:
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not math.isfinite(number) or not low <= number <= high:
            comma = isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+,\d+\s*", value)
            hint = " with a point, not a comma" if comma else ""
            raise ConfigError(
                f"{name} is {given.shown(value)}; it must be a number{hint}, {low:g} to {high:g}"
            )
        return number

    return read


def _class(name: str, value: Any) -> int | str:
    """A class number; text that is none stays, as a class name."""
    if isinstance(value, str) and not re.fullmatch(r"\s*[+-]?[0-9.]+\s*", value):
        return value.strip()
    return _whole(0, 1 << 31)(name, value)


_CALL: dict[str, Callable[[str, Any], Any]] = {
    name: _whole(int(low), int(high)) if whole else _number(low, high)
    for name, (low, high, whole) in given.RANGES.items()
}
_PLAIN: dict[str, Callable[[str, Any], Any]] = {
    "prompt": _text,
    "negative_prompt": _text,
    "class_label": _class,
    "seed": _whole(0, given.MAX_SEED),
    "fps": _number(0.1, 1000),
    "config": _text,
}
FIELDS = (*_PLAIN, *_CALL, *INPUTS, "size", "name", "call", "meta")


def column(name: str) -> str:
    """A column's own name: whatever its letters' case, and spaces for underscores."""
    name = name.strip()
    if name[:5].lower() == "meta.":
        return f"meta.{name[5:]}"  # the rest is the user's own
    name = re.sub(r"[\s-]+", "_", name).lower()
    return ALIASES.get(name, name)


def is_column(name: str) -> bool:
    """Whether a job file may have such a column."""
    name = column(name)
    return name in FIELDS or name.startswith("meta.")


def _canonical(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = column(key)
        if name in found:
            raise ConfigError(f"{name} is given twice (as {given.shown(key)} too)")
        found[name] = value
    if "size" in found:
        size = found.pop("size")
        match = re.fullmatch(r"(?i)\s*(\d{1,9})\s*[x×*]\s*(\d{1,9})\s*", str(size)[:100])
        if not match:
            raise ConfigError(
                f"size is {given.shown(size)}; it must be WIDTHxHEIGHT, such as 832x480"
            )
        if "width" in found or "height" in found:
            raise ConfigError("give either size or width and height")
        found["width"], found["height"] = match.groups()
    return found


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = given.parse_json(value)
        except ValueError as error:
            raise ConfigError(f"{name} is not valid JSON ({error})") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{name} is {given.shown(value)}; it must be a JSON object")
    return value


def check_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the pipeline call, the common ones by type and range.

    Raises:
        ConfigError: an argument that is not the row's to set, or out of range.
    """
    checked = {}
    for key, value in call.items():
        if key in OWN or key.startswith("callback"):
            raise ConfigError(f"call: {key} cannot be set there")
        checked[key] = (
            _CALL[key](key, value) if key in _CALL else given.call_argument(key, value, "call:")
        )
    return checked


def _input(name: str, value: Any, base: Path, allow_remote: bool) -> str:
    text = _text(name, value)
    scheme = urlsplit(text).scheme.lower() if "://" in text else ""
    if scheme:
        if scheme not in _REMOTE:
            raise ConfigError(f"{name}: {scheme}:// is not supported; give a file")
        if not allow_remote:
            raise ConfigError(f"{name} is a URL; fetch it first, or allow URLs (allow_remote)")
        return text
    path = given.path(text)
    path = path if path.is_absolute() else base / path
    if not path.is_file():
        raise ConfigError(f"{name}: no file at {text}")
    return str(path.resolve())


def check_columns(path: Path, names: Iterable[str]) -> None:
    """Refuse a header with a column that nobody knows, before each row fails for it alone.

    Args:
        path: of the job file.
        names: its columns.

    Raises:
        UsageError: one is unknown.
    """
    for name in names:
        try:
            _known(name)
        except ConfigError as error:
            raise UsageError(f"{path}: {error}") from None


def _known(key: str) -> None:
    if is_column(key):
        return
    names = [*FIELDS, *ALIASES]
    near = difflib.get_close_matches(column(key), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ConfigError(
        f"unknown column {given.shown(key)}{hint} Known: {', '.join(FIELDS)} (your own: meta.NAME)"
    )


def check_text(value: Any, name: str = "") -> None:
    """Refuse text that no file can hold, wherever it stands in a row.

    Args:
        value: the row, or a part of it.
        name: of the column.

    Raises:
        ConfigError: half a character, a byte that is not UTF-8, or nested too deeply.
    """
    if given.is_deep(value, _DEPTH):
        raise ConfigError(f"{name or 'the row'} is nested too deeply")
    if isinstance(value, Mapping):
        for key, part in value.items():
            check_text(key, name or "a column's name")
            check_text(part, name or str(key))
    elif isinstance(value, (list, tuple)):
        for part in value:
            check_text(part, name)
    elif isinstance(value, str) and (match := _HALF.search(value)):
        code = ord(match.group())
        if 0xDC80 <= code <= 0xDCFF:
            what = f"holds a byte that is not UTF-8 (0x{code - 0xDC00:02x}); save the file as UTF-8"
        else:
            what = f"holds half a character (\\u{code:04x}, a cut emoji?); write it whole"
        raise ConfigError(f"{name} {what}")


def own(value: Any) -> Any:
    """A value of the user's own as JSON holds it: what it has no form for becomes text.

    Dates and times in ISO format, long numbers with all digits, bytes in base64.
    """
    if isinstance(value, Mapping):
        return {str(k): own(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [own(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if given.is_plain(value):
        return value
    if isinstance(value, (date, clock)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode("ascii")
    return str(value)


def check_row(number: int, values: Mapping[str, Any], base: Path, allow_remote: bool) -> Row:
    """One row, checked.

    Args:
        number: of the row in its file.
        values: as read.
        base: folder that relative input paths start from.
        allow_remote: whether inputs may be URLs.

    Raises:
        ConfigError: the first thing that is wrong with it, in one line.
    """
    check_text(values)
    found = _canonical(values)
    made: dict[str, Any] = {"call": {}, "inputs": {}, "meta": {}}
    said = {column(key): key for key in values}
    try:
        _fill(made, found, base, allow_remote)
    except ConfigError as error:
        # In the file's own words.
        name, _, rest = str(error).partition(" ")
        raise ConfigError(f"{said.get(name, name).strip()} {rest}") from None
    return Row(number, **made)


def _fill(made: dict[str, Any], found: dict[str, Any], base: Path, allow_remote: bool) -> None:
    for key, value in found.items():
        if key in _PLAIN:
            made[key] = _PLAIN[key](key, value)
        elif key in INPUTS:
            made["inputs"][key] = _input(key, value, base, allow_remote)
        elif key == "name":
            made["name"] = check_name(_text(key, value))
        elif key == "meta":
            made["meta"] |= {k: own(v) for k, v in _mapping(key, value).items()}
        elif key.startswith("meta."):
            made["meta"][key.removeprefix("meta.")] = own(value)
        else:
            _known(key)
    extra = check_call(_mapping("call", found["call"])) if "call" in found else {}
    made["call"] = extra | {k: _CALL[k](k, v) for k, v in found.items() if k in _CALL}
