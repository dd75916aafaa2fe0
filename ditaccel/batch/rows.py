"""Raw rows into checked ones: every field has one name, one type and a range."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .. import config as configs
from .. import given
from ..errors import ConfigError, UsageError
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


@dataclass(frozen=True)
class Row:
    """A checked row; None and empty mean that the row does not say.

    Attributes:
        row: number in the file.
        prompt: text, or class name.
        negative_prompt: of the unconditional branch.
        class_label: class number.
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
    class_label: int | None = None
    seed: int | None = None
    call: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    fps: float | None = None
    name: str | None = None
    config: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{name} is {value!r}; it must be text")
    return value.strip()


def _whole(low: int, high: int) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        number: Any = value
        if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+\s*", value):
            number = int(value)
        elif isinstance(value, float) and value.is_integer():
            number = int(value)  # parquet and spreadsheets turn whole numbers into floats
        if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
            raise ConfigError(f"{name} is {value!r}; it must be a whole number, {low} to {high}")
        return number

    return read


def _number(low: float, high: float) -> Callable[[str, Any], float]:
    def read(name: str, value: Any) -> float:
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not math.isfinite(number) or not low <= number <= high:
            raise ConfigError(f"{name} is {value!r}; it must be a number, {low:g} to {high:g}")
        return number

    return read


_CALL: dict[str, Callable[[str, Any], Any]] = {
    name: _whole(int(low), int(high)) if whole else _number(low, high)
    for name, (low, high, whole) in given.RANGES.items()
}
_PLAIN: dict[str, Callable[[str, Any], Any]] = {
    "prompt": _text,
    "negative_prompt": _text,
    "class_label": _whole(0, 1 << 31),
    "seed": _whole(0, given.MAX_SEED),
    "fps": _number(0.1, 1000),
    "config": _text,
}
FIELDS = (*_PLAIN, *_CALL, *INPUTS, "size", "name", "call", "meta")


def _canonical(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = ALIASES.get(key.strip(), key.strip())
        if name in found:
            raise ConfigError(f"{name} is given twice (as {key!r} too)")
        found[name] = value
    if "size" in found:
        match = re.fullmatch(r"\s*(\d+)\s*[x×*]\s*(\d+)\s*", str(found.pop("size")))
        if not match:
            raise ConfigError("size must be WIDTHxHEIGHT, such as 832x480")
        if "width" in found or "height" in found:
            raise ConfigError("give either size or width and height")
        found["width"], found["height"] = match.groups()
    return found


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ConfigError(f"{name} is no valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be a JSON object")
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
        checked[key] = _CALL[key](key, value) if key in _CALL else value
    return checked


def _input(name: str, value: Any, base: Path, allow_remote: bool) -> str:
    text = _text(name, value)
    scheme = urlsplit(text).scheme.lower() if "://" in text else ""
    if scheme:
        if scheme not in _REMOTE:
            raise ConfigError(f"{name}: {scheme}:// is not supported; give a file")
        if not allow_remote:
            raise ConfigError(f"{name} is a URL; fetch it first, or allow it with --allow-remote")
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
            _known(ALIASES.get(name, name))
        except ConfigError as error:
            raise UsageError(f"{path}: {error}") from None


def _known(key: str) -> None:
    if key not in FIELDS and not key.startswith("meta."):
        hint = configs.suggest(key, FIELDS)
        raise ConfigError(f"unknown column {key!r}{hint} (your own: meta.NAME)")


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
    found = _canonical(values)
    made: dict[str, Any] = {"call": {}, "inputs": {}, "meta": {}}
    said = {ALIASES[key.strip()]: key for key in values if key.strip() in ALIASES}
    try:
        _fill(made, found, base, allow_remote)
    except ConfigError as error:
        # In the file's own words.
        name, _, rest = str(error).partition(" ")
        raise ConfigError(f"{said.get(name, name)} {rest}") from None
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
            made["meta"] |= _mapping(key, value)
        elif key.startswith("meta."):
            made["meta"][key.removeprefix("meta.")] = value
        else:
            _known(key)
    extra = check_call(_mapping("call", found["call"])) if "call" in found else {}
    made["call"] = extra | {k: _CALL[k](k, v) for k, v in found.items() if k in _CALL}
