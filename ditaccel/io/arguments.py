"""The vocabulary of the command line: options that several commands take, and what texts mean.

An option of one name means the same in every command, and has the same help text. Below the
commands nobody knows these names: errors name arguments, and `cli` shows them as options.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..errors import ConfigError
from . import given
from .given import shown, whole_argument

# What people write -> torch's name.
DTYPES = {
    **dict.fromkeys(("float32", "fp32", "f32", "float"), "float32"),
    **dict.fromkeys(("float16", "fp16", "f16", "half"), "float16"),
    **dict.fromkeys(("bfloat16", "bf16"), "bfloat16"),
}
SHORT_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
AUTO = "auto"
# Processes, threads and items of a call: more is a slip of the keyboard.
MOST = 4096
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
    """The value that a text on a command line means.

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


class _Renamed(argparse.Action):
    """An option that is called otherwise now: what to write is the error."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        parser.error(f"{self.option_strings[0]} {self.const}")


def add_renamed(parser: argparse.ArgumentParser, old: str, line: str) -> None:
    """Refuse the former name of an option with the line that says what to write.

    Args:
        parser: of the command.
        old: the former name, such as `--prompt-file`.
        line: continues it, such as `is called --prompts now`.
    """
    parser.add_argument(old, action=_Renamed, const=line, help=argparse.SUPPRESS)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the first argument."""
    parser.add_argument("model", help="folder or Hub id of a diffusers pipeline")


def add_out(parser: argparse.ArgumentParser, what: str, metavar: str, needed: bool = True) -> None:
    """Declare `--out`: the place of all that a command writes."""
    parser.add_argument("--out", required=needed, type=Path, metavar=metavar, help=what)


def _prompt_file(text: str) -> str:
    if text.isdecimal():
        line = f"--prompts names a file; for the first {text} prompts use --limit {text}"
        raise argparse.ArgumentTypeError(line)
    return text


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """Declare `--prompts`."""
    parser.add_argument(
        "--prompts",
        type=_prompt_file,
        metavar="FILE",
        help="one prompt (or class name) per line, # comments (default: the model's own)",
    )


def add_limit(
    parser: argparse.ArgumentParser, default: int | None = None, of: str = "prompts"
) -> None:
    """Declare `--limit`, which takes the first N everywhere."""
    parser.add_argument(
        "--limit",
        type=whole_argument("--limit", 1),
        default=default,
        metavar="N",
        help=f"only the first N {of}" + (f" (default {default})" if default else ""),
    )


def add_skip(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare `--skip`, which comes before `--limit`; None where it is not given."""
    parser.add_argument(
        "--skip",
        type=whole_argument("--skip", 0),
        metavar="N",
        help=f"leave the first N prompts to evaluations (default: {default})",
    )


def add_seed(parser: argparse.ArgumentParser, default: int) -> None:
    """Declare `--seed`."""
    parser.add_argument(
        "--seed",
        type=whole_argument("--seed", 0),
        default=default,
        metavar="N",
        help=f"seed of the first generation (default {default})",
    )


def seeds(text: str) -> list[int]:
    """Seeds with commas between them, each of them once."""
    found: list[int] = listed("--seeds", whole_argument("--seeds", 0))(text)
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"--seeds {shown(text)} names a seed twice")
    return found


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """Declare `--seeds`."""
    parser.add_argument(
        "--seeds", type=seeds, default=[0], metavar="N,N", help="such as 0,1 (default 0)"
    )


def add_steps(parser: argparse.ArgumentParser, low: int = 1, more: str = "") -> None:
    """Declare `--steps`: of the scheduler, in every command."""
    parser.add_argument(
        "--steps",
        type=whole_argument("--steps", low),
        metavar="N",
        help=f"scheduler steps{more} (default: the model's own)",
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Declare `--threads`; what the default is decides `opening.use_threads`."""
    parser.add_argument(
        "--threads",
        type=whole_argument("--threads", 1, MOST),
        metavar="N",
        help="CPU threads per process (default: 1 on a CPU, torch's own choice on a GPU)",
    )


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
        "--device",
        default=AUTO,
        metavar="DEVICE",
        help="torch device such as cuda:1 or cpu (default: a GPU if there is one)",
    )


def add_pipeline(parser: argparse.ArgumentParser) -> None:
    """Declare `--pipeline`."""
    parser.add_argument(
        "--pipeline",
        metavar="MODULE:FUNCTION",
        help="your function that returns the pipeline, ready to be called (LoRA, offload, "
        "quantisation, compile, another scheduler or class); also FILE.py:FUNCTION",
    )


def add_scheduler(parser: argparse.ArgumentParser) -> None:
    """Declare `--scheduler`."""
    parser.add_argument(
        "--scheduler",
        metavar="NAME",
        help="another scheduler with the model's own noise levels: euler, ddim, unipc, unipc3, "
        "dpm++2m, dpm++3m, heun (default: the model's own)",
    )


def add_running(parser: argparse.ArgumentParser, dtype_default: str = "") -> None:
    """Declare where and in what a pipeline runs: `--device --dtype --pipeline --threads`."""
    add_device(parser)
    add_dtype(parser, dtype_default)
    add_pipeline(parser)
    add_threads(parser)


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare `--json`."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON")


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Declare `--quiet`."""
    parser.add_argument("--quiet", action="store_true", help="show no progress")
