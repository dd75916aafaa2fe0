"""Types of options, checked against the annotations of their dataclass: one checker for all.

What is of the right kind is brought into its plain form (a NumPy number, a list where a tuple is
meant), so that a config compares, hashes and is written to a file like any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
import numbers
import os
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union

from ..errors import ConfigError
from ..io.given import shown, suggest

T = TypeVar("T", bound=type)
_WRONG = object()
_LARGEST = 1 << 63  # what tensors, files and other languages take


def checked(owner: str = "", but: tuple[str, ...] = ()) -> Callable[[T], T]:
    """Let a dataclass check the types of its fields before its own `__post_init__`.

    One whose fields are keyword-only says so in one line where it is given values by position.

    Args:
        owner: what a message begins with; the name of the class by default.
        but: fields that the dataclass checks itself.
    """

    def wrap(cls: T) -> T:
        kind: Any = cls
        name = owner or kind.__name__
        own = getattr(kind, "__post_init__", None)
        made = kind.__init__
        fields = [field for field in dataclasses.fields(kind) if field.init]
        by_name = all(field.kw_only for field in fields)

        @functools.wraps(made)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            if args and by_name:
                raise ConfigError(
                    f"{kind.__name__} takes its options by name, as in "
                    f"{kind.__name__}({_by_name(kind, fields[0].name, args[0])})"
                )
            names = [field.name for field in fields]
            unknown = next((key for key in kwargs if key not in names), None)
            if unknown is not None:
                raise ConfigError(f"{name} has no option {unknown!r}{suggest(unknown, names)}")
            made(self, *args, **kwargs)
            if own is None:
                check_fields(self, name, but)

        kind.__init__ = __init__
        if own is not None:

            @functools.wraps(own)
            def __post_init__(self: Any) -> None:
                check_fields(self, name, but)
                own(self)

            kind.__post_init__ = __post_init__
        return cls

    return wrap


def _by_name(kind: Any, name: str, value: Any) -> str:
    """An option as it is to be written, for a value that was given by position."""
    hint = typing.get_type_hints(kind)[name]
    if isinstance(value, str) and _plain(hint, value) is _WRONG:
        with contextlib.suppress(ValueError):  # a number in quotes
            value = float(value)
    if _plain(hint, value) is _WRONG:
        return f"{name}=..."
    return f"{name}={shown(value) if not isinstance(value, float) else format(value, 'g')}"


def check_fields(config: Any, owner: str, but: tuple[str, ...] = ()) -> None:
    """Check every field of a dataclass against its annotation; plain forms take their place.

    Raises:
        ConfigError: a value is of another type, not finite, or none of the words allowed.
    """
    hints = typing.get_type_hints(type(config))
    for each in dataclasses.fields(config):
        if each.name in but:
            continue
        value = getattr(config, each.name)
        plain = checked_value(owner, each.name, hints[each.name], value)
        if plain is not value:
            object.__setattr__(config, each.name, plain)


def checked_value(owner: str, name: str, hint: Any, value: Any) -> Any:
    """Return `value` in the plain form of the annotated type.

    Args:
        owner: whose option it is, for the message; may be empty.
        name: of the option.
        hint: its annotation: `int`, `float`, `bool`, `str`, `None`, `os.PathLike`, `Literal`,
            tuples, and unions of these; for `Any`, everything is taken.
        value: what was given.

    Raises:
        ConfigError: it is of another type.
    """
    plain = _plain(hint, value)
    if plain is not _WRONG:
        return plain
    place = f"{owner}: {name}" if owner else name
    raise ConfigError(
        f"{place} is {shown(value)}; it must be {_described(hint)}{_near(hint, value)}"
    )


def arms_of(hint: Any) -> tuple[Any, ...]:
    """The types of a union; another type is its own only arm."""
    if typing.get_origin(hint) in (types.UnionType, Union):
        return typing.get_args(hint)
    return (hint,)


def _plain(hint: Any, value: Any) -> Any:
    """The value in plain form, `_WRONG` where no arm of the annotation takes it."""
    if not isinstance(value, (bool, int, float, str)):
        value = _scalar(value)
    arms = arms_of(hint)
    # An exact type first: 1 stays whole where both whole numbers and shares are allowed.
    for arm in sorted(arms, key=lambda arm: arm is not type(value)):
        plain = _as(arm, value)
        if plain is not _WRONG:
            return plain
    return _WRONG


def _scalar(value: Any) -> Any:
    """A number of NumPy or torch as Python's own; everything else as it is."""
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):
        return value.item()
    return value


def _as(arm: Any, value: Any) -> Any:
    origin = typing.get_origin(arm)
    if arm is Any:
        return value
    if arm is type(None) or arm is None:
        return None if value is None else _WRONG
    if origin is Literal:
        words = typing.get_args(arm)
        return next((w for w in words if isinstance(value, type(w)) and w == value), _WRONG)
    if arm is bool:
        return value if isinstance(value, bool) else _WRONG
    if arm is int:
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return int(value) if whole and abs(int(value)) < _LARGEST else _WRONG
    if arm is float:
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return float(value) if number and _is_finite(value) else _WRONG
    if arm is str:
        return value if isinstance(value, str) else _WRONG
    if arm is os.PathLike or origin is os.PathLike:
        return os.fspath(value) if isinstance(value, os.PathLike) else _WRONG
    if arm is tuple or origin is tuple:
        return _as_tuple(typing.get_args(arm), value)
    return value if isinstance(value, origin or arm) else _WRONG


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False  # a whole number beyond what a float can be


def _as_tuple(items: tuple[Any, ...], value: Any) -> Any:
    if callable(getattr(value, "tolist", None)):
        value = value.tolist()
    if not isinstance(value, (list, tuple, range)):
        return _WRONG
    if not items:
        return tuple(value)
    if len(items) == 2 and items[1] is Ellipsis:
        items = items[:1] * len(value)
    if len(items) != len(value):
        return _WRONG
    plain = tuple(_plain(hint, item) for hint, item in zip(items, value, strict=True))
    return _WRONG if any(item is _WRONG for item in plain) else plain


def _described(hint: Any, many: bool = False) -> str:
    arms = list(arms_of(hint))
    if int in arms and float in arms:
        arms.remove(int)
    if str in arms:
        arms = [a for a in arms if a is not os.PathLike and typing.get_origin(a) is not os.PathLike]
    words = [_word(arm, many) for arm in arms]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _word(arm: Any, many: bool) -> str:
    named = {
        int: ("a whole number", "whole numbers"),
        float: ("a finite number", "finite numbers"),
        bool: ("True or False", "True or False"),
        str: ("text", "texts"),
        type(None): ("None", "None"),
    }
    if arm in named:
        return named[arm][many]
    items = typing.get_args(arm)
    if typing.get_origin(arm) is Literal:
        return f"one of: {', '.join(map(repr, items))}"
    if typing.get_origin(arm) is tuple:
        if len(items) == 2 and items[1] is Ellipsis:
            return f"{'lists' if many else 'a list'} of {_described(items[0], True)}"
        if len(items) == 2 and items[0] == items[1]:
            return f"{'pairs' if many else 'a pair'} of {_described(items[0], True)}"
    return getattr(arm, "__name__", str(arm))


def _near(hint: Any, value: Any) -> str:
    words = [
        word
        for arm in arms_of(hint)
        if typing.get_origin(arm) is Literal
        for word in typing.get_args(arm)
        if isinstance(word, str)
    ]
    near = difflib.get_close_matches(value, words, n=1) if isinstance(value, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""
