"""Checks that method configs share: one line per mistake."""

from __future__ import annotations

from ..errors import ConfigError


def require(condition: bool, line: str) -> None:
    """Raise ConfigError with `line` unless `condition` holds."""
    if not condition:
        raise ConfigError(line)


def choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `allowed`."""
    require(
        value in allowed, f"{name} is {value!r}; it must be one of: {', '.join(map(repr, allowed))}"
    )
