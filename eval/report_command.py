"""`ditaccel report`: the HTML page of an evaluation folder, again or as a plot for a README."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `ditaccel report`."""
    parser.add_argument("folder", type=Path, help="what `ditaccel eval --out` wrote")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the Pareto plot there, too")


def run(args: argparse.Namespace) -> int:
    """Run `ditaccel report`.

    Returns:
        0.

    Raises:
        UsageError: the folder's files are missing or damaged.
    """
    from .report_html import markdown_table, write_pareto_png, write_report

    page = write_report(args.folder)
    print(markdown_table(args.folder))
    if args.png is not None:
        print(f"plot: {write_pareto_png(args.folder, args.png)}")
    print(f"report: {page}")
    return 0
