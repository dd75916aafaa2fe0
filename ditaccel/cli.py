"""The command line: `ditaccel eval …`. Each subcommand lives in its own room."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import __version__
from .errors import DitaccelError

# subcommand -> (module with add_arguments(parser) and run(args), help)
COMMANDS = {
    "bench": ("ditaccel.eval.bench.command", "time kernels and overheads, as ratios in one run"),
    "doctor": ("ditaccel.doctor_command", "say what would be accelerated in a model, and why not"),
    "eval": ("ditaccel.eval.command", "measure speed and quality of configs against dense runs"),
    "finetune": ("ditaccel.finetune_command", "train an adapter for sparse-linear attention"),
    "generate": ("ditaccel.batch.command", "make the pictures or videos of a job file"),
    "report": (
        "ditaccel.eval.report_command",
        "write the page of an evaluation or a batch job",
    ),
    "tune": ("ditaccel.eval.tune_command", "search the steps worth computing; write a config"),
}


class _Parser(argparse.ArgumentParser):
    """Says a mistake in one line: the usage of a command with 25 options would bury it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (`{self.prog} --help` lists the options)\n")


def _parser(command: str | None) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ditaccel", description="Faster diffusion transformers, honestly measured."
    )
    parser.add_argument("--version", action="version", version=f"ditaccel {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=text, description=text)
        if name == command:
            importlib.import_module(module).add_arguments(subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (2 for a mistake of the user)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((a for a in arguments if not a.startswith("-")), None)
    try:
        args = _parser(command).parse_args(arguments)
        return int(importlib.import_module(COMMANDS[args.command][0]).run(args))
    except DitaccelError as error:
        print(f"ditaccel: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ditaccel: interrupted; run the same command again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
