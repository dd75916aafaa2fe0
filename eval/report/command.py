"""`ditaccel report`: the page of an evaluation or a search, or the gallery of a batch job."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ditaccel.batch.folder import JobFolder
from ditaccel.errors import UsageError
from ditaccel.io import given
from ditaccel.tuning.space.tried import PAGE

from ..store import RUN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `ditaccel report`."""
    parser.add_argument(
        "folder",
        type=Path,
        help="what `ditaccel eval` or `ditaccel generate` wrote (its --out), or `ditaccel tune` "
        "(its --runs)",
    )
    parser.add_argument(
        "--png", type=Path, metavar="FILE", help="evaluations: also draw the Pareto plot there"
    )
    parser.add_argument("--json", action="store_true", help="jobs: print the state as JSON")


def run(args: argparse.Namespace) -> int:
    """Run `ditaccel report`.

    Returns:
        0.

    Raises:
        UsageError: the folder's files are missing or damaged, or it is of the other kind.
    """
    if args.png is not None:
        given.output_file(args.png, "png")
    if JobFolder(args.folder).exists and not (args.folder / RUN).exists():
        return _job(args)
    if (args.folder / PAGE).exists() and not (args.folder / RUN).exists():
        return _tuning(args)
    if args.json:
        raise UsageError(f"is for jobs; for an evaluation, read {args.folder}/summary.json", "json")
    from .page import plain_table, write_pareto_png, write_report

    page = write_report(args.folder)
    print(plain_table(args.folder))
    if args.png is not None:
        print(f"plot: {write_pareto_png(args.folder, args.png)}")
    print(f"report: {page}")
    return 0


def _tuning(args: argparse.Namespace) -> int:
    for name in ("png", "json"):
        if getattr(args, name):
            raise UsageError(f"is not for a search; {args.folder} holds one of tune", name)
    from ..summary.search_page import write_tuning_page

    page, lines = write_tuning_page(args.folder)
    print("\n".join([*lines, f"report: {page}"]))
    return 0


def _job(args: argparse.Namespace) -> int:
    if args.png is not None:
        raise UsageError(f"is for evaluations; {args.folder} holds a batch job", "png")
    from .jobs import write_gallery

    page, lines, summary = write_gallery(args.folder)
    if args.json:
        print(json.dumps(summary, indent=1))
    else:
        print("\n".join([*lines, f"gallery: {page}"]))
    return 0
