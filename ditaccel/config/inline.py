"""The inline grammar of one method, `name:option=value,option=value`: read and written."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from ..errors import ConfigError
from ..io import given
from ..io.files import plain
from .checks import require


def parse_options(text: str, spec: str) -> dict[str, Any]:
    """Read `option=value,option=value`; `spec` is the whole, for messages."""
    options: dict[str, Any] = {}
    for item in _split(text):
        key, equals, value = (part.strip() for part in item.partition("="))
        require(bool(equals), f"{spec!r}: {item!r} is not option=value")
        require(key not in options, f"{spec!r} gives {key!r} twice; give each option once")
        try:
            options[key] = given.parse_yaml(value)
        except ValueError:
            raise ConfigError(f"{spec!r}: cannot read the value {value!r}") from None
    return options


def method_spec(method: Any) -> str:
    """A method's config as a user writes it, without options that have their defaults."""
    options = {
        f.name: getattr(method, f.name)
        for f in dataclasses.fields(method)
        if getattr(method, f.name) != f.default
    }
    written = (f"{name}={_written(value)}" for name, value in options.items())
    return ":".join(filter(None, (method.method, ",".join(written))))


def _written(value: Any) -> str:
    """A value in YAML, on one line."""
    text = yaml.safe_dump(plain(value), default_flow_style=True, width=float("inf"))
    return str(text).removesuffix("\n").removesuffix("\n...")


def _split(text: str) -> list[str]:
    """Split at commas outside brackets."""
    items, depth, item = [], 0, ""
    for character in text:
        depth += character in "[({"
        depth -= character in "])}"
        if character == "," and depth == 0:
            items.append(item)
            item = ""
        else:
            item += character
    return [i for i in (*items, item) if i.strip()]
