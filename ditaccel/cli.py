"""The command line: `ditaccel eval …`. Each subcommand lives in its own room."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .errors import DitaccelError, UsageError
from .io import given
from .warning import plain_warnings

# subcommand -> (module with add_arguments(parser) and run(args), help)
COMMANDS = {
    "bench": (
        "ditaccel.eval.bench.command",
        "time kernels and overheads, each as a ratio",
    ),
    "doctor": (
        "ditaccel.diagnosis.command",
        "show what would be accelerated, what would not, and why",
    ),
    "eval": ("ditaccel.eval.command", "measure speed and quality of configs against dense runs"),
    "export": (
        "ditaccel.export.command",
        "write the computed steps of a config for cache-dit, diffusers or others",
    ),
    "finetune": ("ditaccel.finetuning.command", "train an adapter for a method"),
    "generate": ("ditaccel.batch.command", "generate the pictures or videos of a job file"),
    "report": (
        "ditaccel.eval.report.command",
        "write the page of an evaluation or of a batch job",
    ),
    "tune": (
        "ditaccel.tuning.command",
        "search the steps that are worth computing; write a config",
    ),
}


# Of an error's line: names of files may be long, and errors list what is known.
_LONGEST = 4000
_OPTION_TWICE = re.compile(r"^argument (?:(--[\w-]+): )(?=\1\b)(?:\1)?")


def _argument(check: Callable[[str], Any]) -> Callable[[str], Any]:
    """A check as argparse wants it: its line becomes the parser's."""

    def parse(text: str) -> Any:
        try:
            return check(text)
        except DitaccelError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _text(text: str) -> str:
    if "\0" in text:
        raise UsageError(f"{given.shown(text)}: it cannot hold a NUL character")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise UsageError(f"{given.shown(text)}: it holds half a character") from None
    return text


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line: the usage of a command with 25 options would bury it.

    Paths (`type=Path`) and plain texts of every command are checked by `given`.

    Attributes:
        chosen: of the command that was given, None where none is known.
    """

    chosen: _Parser | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register("type", Path, _argument(given.path))
        self.register("type", None, _argument(_text))

    def error(self, message: str) -> NoReturn:
        # argparse says `argument --seed: ` in front of lines that begin with the option themselves.
        line = _OPTION_TWICE.sub(r"\1", given.one_line(message))
        self.exit(2, f"{self.prog}: error: {line} (`{self.prog} --help` lists the options)\n")


def _parser(command: str | None) -> _Parser:
    parser = _Parser(
        prog="ditaccel", description="Faster diffusion transformers, honestly measured."
    )
    parser.add_argument("--version", action="version", version=f"ditaccel {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=text, description=text)
        if name == command:
            importlib.import_module(module).add_arguments(subparser)
            parser.chosen = subparser
    return parser


def _check(args: argparse.Namespace) -> None:
    """Check what means the same in every command: a device, seeds, arguments of the pipeline call.

    Raises:
        DitaccelError: one of them is wrong; nothing has been loaded or written yet.
    """
    found = vars(args)
    # `auto` chooses; Ray's devices are other machines'.
    if found.get("device") not in (None, "auto") and found.get("engine") != "ray":
        given.device(found["device"])
    if found.get("seed") is not None:
        given.seed(found["seed"])
    given.seeds_of(found.get("seeds") or ())
    for key, value in found.get("call") or ():
        given.call_argument(key, value)


def _told(error: DitaccelError, args: argparse.Namespace) -> str:
    """The line of an error: the name of an argument becomes that of the command's option."""
    if error.argument and hasattr(args, error.argument):
        return f"--{error.argument.replace('_', '-')} {error.line}"
    return str(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code of the command; 2 for a mistake of the user, 130 where it was interrupted, 141
        where nobody reads its output any more.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        for stream in (sys.stdout, sys.stderr):
            # A file name need not be text in the terminal's encoding.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    command = next((a for a in arguments if not a.startswith("-")), None)
    args = argparse.Namespace()
    try:
        parser = _parser(command)
        args, unknown = parser.parse_known_args(arguments)
        if unknown:
            (parser.chosen or parser).error(f"unrecognized arguments: {' '.join(unknown)}")
        _check(args)
        with plain_warnings():
            return int(importlib.import_module(COMMANDS[args.command][0]).run(args))
    except DitaccelError as error:
        print(f"ditaccel: error: {given.one_line(_told(error, args), _LONGEST)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # `… | head`: what is still in the buffer must not raise once more at exit.
        with contextlib.suppress(OSError):  # a stand-in for stdout has no number
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        # What the disk and the system refuse (permissions, a folder that went away, a full disk).
        place = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error) or type(error).__name__
        print(f"ditaccel: error: {given.one_line(place + reason, _LONGEST)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ditaccel: interrupted; run the same command again to resume", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
