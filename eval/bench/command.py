"""`ditaccel bench …`: speed of parts, as ratios measured in one run.

A benchmark is a module of this room with a line of `HELP`, `add_arguments(parser)` and `run(args)`.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType


def benches() -> dict[str, ModuleType]:
    """The benchmarks by name, in the order of the alphabet."""
    names = [entry.name for entry in pkgutil.iter_modules([str(Path(__file__).parent)])]
    modules = {name: importlib.import_module(f".{name}", __package__) for name in sorted(names)}
    return {name: module for name, module in modules.items() if hasattr(module, "HELP")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One subcommand for each benchmark."""
    parts = parser.add_subparsers(dest="bench", metavar="BENCH", required=True)
    for name, module in benches().items():
        module.add_arguments(parts.add_parser(name, help=module.HELP, description=module.HELP))


def run(args: argparse.Namespace) -> int:
    """Run the chosen benchmark."""
    return int(benches()[args.bench].run(args))
