"""What the texts of a command line mean: one vocabulary and one reader for every command."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from typing import Any

import yaml

from ..errors import ConfigError
from . import given
from .given import shown

# What people write -> torch's name.
DTYPES = {
    **dict.fromkeys(("float32", "fp32", "f32", "float"), "float32"),
    **dict.fromkeys(("float16", "fp16", "f16", "half"), "float16"),
    **dict.fromkeys(("bfloat16", "bf16"), "bfloat16"),
}
SHORT_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
AUTO = "auto"
# What the commands set themselves.
_OWN = ("generator", "output_type", "return_dict", "prompt")


class _Values(yaml.SafeLoader):
    """YAML's core schema: `1e-3` is a number and `no` is a word, unlike in YAML 1.1."""


_Values.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"null|Null|NULL|None|none|~", "nN~"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+",
        "-+.0123456789",
    ),
):
    _Values.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first)
    )


def value_of(text: str) -> Any:
    """The value that a text on a command line stands for.

    Args:
        text: `3`, `0.1`, `1e-3`, `true`, `null` (or `none`), a list or mapping such as
            `[1, 2]`; everything else, and what stands in quotes, is text.

    Raises:
        ValueError: an unclosed bracket or quote, or the like.
    """
    if text.strip()[:1] not in ("[", "{", "'", '"') and not _is_plain(text.strip()):
        return text.strip()
    try:
        value = yaml.load(text, _Values)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, KeyError):
        raise ValueError(f"cannot read the value {shown(text)}") from None
    if given.is_deep(value):
        raise ValueError(f"the value {shown(text)} is nested too deeply")
    return value


def _is_plain(text: str) -> bool:
    """Whether one of the resolvers takes it: a number, truth value or nothing."""
    resolvers = _Values.yaml_implicit_resolvers.get(text[:1], ())
    return any(pattern.match(text) for _, pattern in resolvers)


def number(
    name: str, low: float, high: float, *, open_ends: bool = False
) -> Callable[[str], float]:
    """A parser of numbers between `low` and `high`; with `open_ends` neither of them."""

    def parse(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = float("nan")
        good = low < found < high if open_ends else low <= found <= high
        if not good:
            ends = "between" if open_ends else "from"
            joint = "and" if open_ends else "to"
            raise argparse.ArgumentTypeError(
                f"{name} must be a number {ends} {low:g} {joint} {high:g}: {shown(text)}"
            )
        return found

    return parse


def listed(name: str, one: Callable[[str], Any], example: str = "0,1,2") -> Callable[[str], Any]:
    """A parser of values with commas between them.

    Args:
        name: of the option.
        one: parses one of them.
        example: shown where there are none.
    """

    def parse(text: str) -> list[Any]:
        if not text.strip():
            raise argparse.ArgumentTypeError(f"{name}: expected numbers such as {example}")
        return [one(part.strip()) for part in text.split(",")]

    return parse


def dtype(text: str) -> str | None:
    """torch's name of a dtype in any usual spelling; None for `auto`."""
    word = text.strip().lower().removeprefix("torch.")
    if word == AUTO:
        return None
    if word not in DTYPES:
        raise argparse.ArgumentTypeError(
            f"--dtype {shown(text)}: it must be one of float32 (fp32), float16 (fp16), bfloat16 "
            "(bf16) or auto"
        )
    return DTYPES[word]


def call_argument(text: str) -> tuple[str, Any]:
    """Read `ARG=VALUE` for the pipeline call; for the value see `value_of`."""
    key, separator, rest = text.partition("=")
    name = key.strip()
    if not separator or not name.isidentifier() or not rest:
        raise argparse.ArgumentTypeError(f"expected argument=value, got {shown(text)}")
    if name in _OWN or name.startswith("callback"):
        raise argparse.ArgumentTypeError(f"--call {name}: the command sets it itself")
    try:
        value = value_of(rest)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"--call {name}: {error}") from None
    try:
        return name, given.call_argument(name, value)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check_taken(names: Iterable[str], taken: Iterable[str], pipeline: str) -> str | None:
    """What is wrong with the arguments given by `--call`, None where nothing is.

    Args:
        names: that were given.
        taken: parameters of the pipeline call.
        pipeline: name of its class.
    """
    known = list(taken)
    for name in names:
        if name not in known:
            return f"--call {name}: {pipeline} takes no such argument{given.suggest(name, known)}"
    return None


def add_call(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Declare `--call`."""
    parser.add_argument(
        "--call",
        action="append",
        default=[],
        type=call_argument,
        metavar="ARG=VALUE",
        help=f"argument of the pipeline call{more}, such as guidance_scale=3.5; repeatable",
    )


def add_dtype(parser: argparse.ArgumentParser, default: str = "") -> None:
    """Declare `--dtype`, which is None for `auto`."""
    parser.add_argument(
        "--dtype",
        type=dtype,
        metavar="DTYPE",
        help="float32 (fp32), float16 (fp16), bfloat16 (bf16) or auto; default: "
        + (default or "that of the model's weights, float32 on a CPU"),
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Declare `--device`."""
    parser.add_argument(
        "--device", default=AUTO, help="torch device (default: a GPU where there is one)"
    )


def add_pipeline(parser: argparse.ArgumentParser) -> None:
    """Declare `--pipeline`."""
    parser.add_argument(
        "--pipeline",
        metavar="MODULE:FUNCTION",
        help="your function that returns the pipeline, ready to be called (LoRA, offload, "
        "quantisation, compile, another scheduler or class); also FILE.py:FUNCTION",
    )
