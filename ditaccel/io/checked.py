"""Reads JSON that somebody may have changed: its shape is checked before anyone trusts it.

A check takes a value and the place where it stands, and returns the value as it may be used:
text without lone surrogates (no file and no terminal takes them), numbers that are finite and
within bounds. What is wrong ends in one line that names the file, the place and what to do.

    LINE = record({"sample": text, "seconds": number(0)}, {"error": maybe(text)})
    lines = read_records(folder / "results.jsonl", LINE, "run the evaluation again")
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .files import numbered_lines, read_json

Check = Callable[[Any, str], Any]

# Beyond this no figure of ours can lie, and sums and products of a few stay finite.
LARGE = 1e15
_DEPTH = 16
_SURROGATE = re.compile("[\ud800-\udfff]")


class WrongShape(ValueError):
    """A value is not what must stand in its place; the text says place and reason."""


def _name(value: Any) -> str:
    if value is None:
        return "null"
    kinds = ((bool, "true or false"), (int, "a number"), (float, "a number"), (str, "text"))
    for kind, name in (*kinds, (list, "a list"), (dict, "an object")):
        if isinstance(value, kind):
            return name
    return type(value).__name__


def _wrong(at: str, wanted: str, value: Any) -> WrongShape:
    return WrongShape(f"{at or 'the content'} must be {wanted}, not {_name(value)}")


def legible(value: str) -> str:
    """Text that any encoding of Unicode takes: lone surrogates become U+FFFD."""
    return _SURROGATE.sub("\ufffd", value)


def _key(at: str, key: str) -> str:
    shown = legible(key).encode("unicode_escape").decode()[:40]
    return f"{at}.{shown}" if at else shown


def text(value: Any, at: str) -> str:
    """Check for text."""
    if not isinstance(value, str):
        raise _wrong(at, "text", value)
    return legible(value)


def flag(value: Any, at: str) -> bool:
    """Check for true or false."""
    if not isinstance(value, bool):
        raise _wrong(at, "true or false", value)
    return value


def number(low: float = -LARGE, high: float = LARGE) -> Check:
    """Return a check for a finite number from `low` to `high`."""

    def check(value: Any, at: str) -> int | float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(at, "a number", value)
        # An int of any length compares exactly, where float() would overflow.
        if isinstance(value, float) and not math.isfinite(value):
            raise WrongShape(f"{at} must be a finite number")
        if not low <= value <= high:
            raise WrongShape(f"{at} must lie from {low:g} to {high:g}")
        return value

    return check


def whole(low: int = -(2**63), high: int = 2**63 - 1) -> Check:
    """Return a check for a whole number from `low` to `high`."""

    def check(value: Any, at: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(at, "a whole number", value)
        if not low <= value <= high:
            raise WrongShape(f"{at} must be a whole number from {low} to {high}")
        return value

    return check


def choice(*allowed: str) -> Check:
    """Return a check for one of a few words."""

    def check(value: Any, at: str) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise WrongShape(f"{at} must be one of {', '.join(allowed)}")
        return value

    return check


def maybe(check: Check) -> Check:
    """Return a check that takes null, too."""
    return lambda value, at: None if value is None else check(value, at)


def either(first: Check, second: Check) -> Check:
    """Return a check that takes what one of two takes; the second says what is wrong."""

    def check(value: Any, at: str) -> Any:
        try:
            return first(value, at)
        except WrongShape:
            return second(value, at)

    return check


def items(check: Check, least: int = 0) -> Check:
    """Return a check for a list of at least so many values of one shape."""

    def checked(value: Any, at: str) -> list[Any]:
        if not isinstance(value, list):
            raise _wrong(at, "a list", value)
        if len(value) < least:
            raise WrongShape(f"{at} must hold at least {least}")
        return [check(item, f"{at}[{i}]") for i, item in enumerate(value)]

    return checked


def row(*checks: Check) -> Check:
    """Return a check for a list with one value for each of the checks."""

    def checked(value: Any, at: str) -> list[Any]:
        if not isinstance(value, list) or len(value) != len(checks):
            raise WrongShape(f"{at} must be a list of {len(checks)}")
        return [
            check(item, f"{at}[{i}]")
            for i, (check, item) in enumerate(zip(checks, value, strict=True))
        ]

    return checked


def table(check: Check) -> Check:
    """Return a check for an object with any keys, whose values have one shape."""

    def checked(value: Any, at: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(at, "an object", value)
        return {legible(key): check(item, _key(at, key)) for key, item in value.items()}

    return checked


def record(needed: Mapping[str, Check], known: Mapping[str, Check] | None = None) -> Check:
    """Return a check for an object.

    Args:
        needed: keys that must be there.
        known: keys that may be there. Others are plain JSON of any shape.
    """
    checks = {**needed, **(known or {})}

    def checked(value: Any, at: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(at, "an object", value)
        for key in needed:
            if key not in value:
                raise WrongShape(f"{_key(at, key)} is missing")
        return {
            legible(key): checks.get(key, anything)(item, _key(at, key))
            for key, item in value.items()
        }

    return checked


def anything(value: Any, at: str) -> Any:
    """Check plain JSON: nested a few levels deep at most, its numbers finite."""
    if at.count(".") + at.count("[") > _DEPTH:
        raise WrongShape(f"{at[:60]}… is nested too deeply")
    if isinstance(value, dict):
        return table(anything)(value, at)
    if isinstance(value, list):
        return items(anything)(value, at)
    if isinstance(value, str):
        return legible(value)
    if isinstance(value, bool) or value is None:
        return value
    return number(-1e300, 1e300)(value, at)


def read_record(path: Path, check: Check, advice: str) -> Any:
    """The checked content of a JSON file.

    Args:
        path: the file.
        check: the shape of its content.
        advice: what to do about a file that is wrong; it ends the line.

    Raises:
        UsageError: missing, damaged, or of another shape: file and place in one line.
    """
    data = read_json(path)
    try:
        return check(data, "")
    except WrongShape as error:
        raise UsageError(f"{path} is damaged: {error}; {advice}") from None


def read_records(path: Path, check: Check, advice: str) -> list[Any]:
    """The checked lines of a JSON-lines file; for a half-written last line see `read_lines`.

    Args:
        path: the file; one that is missing has no lines.
        check: the shape of a line.
        advice: see `read_record`.

    Raises:
        UsageError: damaged, or a line of another shape: file, line and place in one line.
    """
    found = []
    for line, data in numbered_lines(path):
        try:
            found.append(check(data, ""))
        except WrongShape as error:
            raise UsageError(f"{path}, line {line} is damaged: {error}; {advice}") from None
    return found
