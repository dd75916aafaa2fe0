"""Checks that method configs share: one line per mistake."""

from __future__ import annotations

from typing import Any, TypeVar

from ..errors import ConfigError, DitaccelError

T = TypeVar("T")


def require(condition: bool, line: str) -> None:
    """Raise ConfigError with `line` unless `condition` holds."""
    if not condition:
        raise ConfigError(line)


def choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `allowed`."""
    require(
        value in allowed, f"{name} is {value!r}; it must be one of: {', '.join(map(repr, allowed))}"
    )


def made(config: Any, method: str, kind: type[T], hint: str = "") -> T:
    """What a method of a config returns; one from outside may raise or return anything.

    Args:
        config: of a method.
        method: name of its method, without arguments.
        kind: class that it must return.
        hint: how to make one.

    Raises:
        ConfigError: it raises something, or returns something else.
    """
    call = f"{type(config).__name__}.{method}()"
    try:
        value = getattr(config, method)()
    except DitaccelError:
        raise
    except Exception as error:
        raise ConfigError(f"{call} failed ({type(error).__name__}: {error})") from error
    if not isinstance(value, kind):
        raise ConfigError(
            f"{call} returned a value of type {type(value).__name__}; it must return a "
            f"{kind.__name__}{hint}"
        )
    return value
