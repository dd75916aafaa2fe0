"""`ditaccel eval`: measure speed and quality of configs compared with dense runs of a model."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditaccel.errors import UsageError
from ditaccel.io import arguments as options
from ditaccel.io.arguments import listed
from ditaccel.io.given import whole_argument as whole

if TYPE_CHECKING:
    from ditaccel.io.models import Sheet

    from .options import Options

EXAMPLE = """\
examples:
  ditaccel eval samples/models/shapes-wan --out out \\
      --config balanced --config fast
  ditaccel eval samples/models/shapes-wan --limit 4 --seeds 0,1 --out out \\
      --config "CG-Taylor=confidence_gated_taylor:threshold=0.05|0.1|0.2" \\
      --config "TaylorSeer=taylorseer:interval=2|3|4" \\
      --config "peer/cache_dit:fn=1,threshold=0.1"

A config is a preset name, a YAML file, method:option=value,…, steps:N,
steps:N+method:…, or peer/NAME:option=value,…; a|b|c in place of a value makes
a series (one curve), and label=… in front names it. Dense, dense with another
seed, and fewer steps are always measured as well.
The same command with the same --out resumes where a killed run stopped.
Runs of several machines (other seeds, other prompts) become one table by
  ditaccel eval MODEL --merge run-a --merge run-b --out both
exit code: 0 all measured, 3 some samples failed, 2 the command is wrong.
"""

_PAIRS = 8
# Options that only a run can follow, each with its default.
_OF_A_RUN: dict[str, Any] = {
    **dict.fromkeys(("config", "prompts", "limit", "steps", "fewer", "call", "scheduler")),
    "seeds": [0],
    "pairs": _PAIRS,
    "workers": 1,
}


def metric_file(text: str) -> tuple[str, str]:
    """`METRIC=FILE` as a pair.

    Raises:
        argparse.ArgumentTypeError: one of the two is missing.
    """
    key, _, file = text.partition("=")
    if not key.strip() or not file.strip():
        raise argparse.ArgumentTypeError(f"expected METRIC=FILE, such as lpips=FILE, got {text!r}")
    return key.strip(), file.strip()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `ditaccel eval`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    options.add_model(parser)
    add = parser.add_argument
    add("--config", action="append", default=[], metavar="SPEC", help="what to measure; repeatable")
    options.add_out(parser, "folder of the run", "DIR")
    options.add_prompts(parser)
    options.add_limit(parser)
    options.add_seeds(parser)
    options.add_steps(parser, 2, " of the dense runs")
    add(
        "--fewer",
        type=listed("--fewer", whole("--fewer", 1), "30,20"),
        metavar="N,N",
        help="step counts of the fewer-steps rows (default: shares of --steps)",
    )
    options.add_call(parser)
    add(
        "--features",
        metavar="WHAT",
        help="feature extractor behind FID: a folder, efficientnet-lite0, inception=FILE, "
        "module:Class=FILE, or none (default: the model's own)",
    )
    add("--real", metavar="PATH", help="real frames for FID: a folder or an npz file")
    add("--real-n", type=whole("--real-n", 2), metavar="N", help="use the first N of them")
    add(
        "--weights",
        action="append",
        type=metric_file,
        default=[],
        metavar="METRIC=PATH",
        help="weights of a metric that needs some, such as lpips=FILE; repeatable",
    )
    options.add_renamed(parser, "--lpips-weights", "FILE is --weights lpips=FILE now")
    options.add_running(parser)
    options.add_scheduler(parser)
    add(
        "--pairs",
        type=whole("--pairs", 1),
        default=_PAIRS,
        metavar="N",
        help="time the first N samples, each row next to a dense run of its own "
        f"(default {_PAIRS})",
    )
    _add_machines(parser)
    add("--no-html", action="store_true", help="write no HTML report")
    options.add_json(parser, "the summary")
    options.add_quiet(parser)


def _add_machines(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--workers",
        type=whole("--workers", 1),
        default=1,
        metavar="N",
        help="processes that share the samples, each on a GPU of its own where there are enough; "
        "they load each other, so time with one (default 1)",
    )
    add(
        "--merge",
        action="append",
        type=Path,
        default=[],
        metavar="DIR",
        help="make nothing: merge finished runs of the same rows, of other machines, into --out; "
        "repeatable",
    )


def _need_packages() -> None:
    for package in ("torchmetrics", "diffusers"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UsageError(
                f"`ditaccel eval` needs {package}: pip install 'ditaccel[eval]' ({error})"
            ) from error


def _options(args: argparse.Namespace) -> Options:
    """How to run, by the command's options."""
    from .options import Options

    return Options(
        steps=args.steps,
        fewer=args.fewer,
        call=dict(args.call),
        features=args.features,
        real=args.real,
        real_n=args.real_n,
        weights=dict(args.weights),
        device=args.device,
        dtype=args.dtype,
        pipeline=args.pipeline,
        scheduler=args.scheduler,
        threads=args.threads,
        pairs=args.pairs,
        workers=args.workers,
        quiet=args.quiet,
    )


def run(args: argparse.Namespace) -> int:
    """Run `ditaccel eval`.

    Returns:
        0; 3 where samples failed (they are listed).

    Raises:
        DitaccelError: unusable input, in one line.
    """
    _need_packages()
    from ditaccel.io.models import prompts_for, read_sheet
    from ditaccel.io.opening import choose_device, use_threads

    from .runs import evaluate

    sheet = read_sheet(args.model)
    if args.merge:
        return _report(_merged(args, sheet), args)
    prompts = prompts_for(args.model, sheet, args.prompts)[: args.limit]
    use_threads(args.threads, choose_device(args.device))
    out = evaluate(args.model, args.config, prompts, args.seeds, args.out, _options(args))
    return _report(out, args)


def _merged(args: argparse.Namespace, sheet: Sheet) -> Path:
    """Merge finished runs.

    Raises:
        UsageError: an option that only a run could follow, or runs that cannot be one table.
    """
    from .judge import Judge
    from .workers.parts import merge

    for name, default in _OF_A_RUN.items():
        if (getattr(args, name) or None) != default:
            raise UsageError("is for a run; merged runs have it already", name)
    return merge(args.merge, args.out, Judge(_options(args), sheet, None))


def _report(out: Path, args: argparse.Namespace) -> int:
    """Write the report and show the figures; returns the exit code."""
    from ditaccel.io.files import read_json

    from .store import SUMMARY

    summary = read_json(out / SUMMARY)
    report = None
    if not args.no_html:
        from .report.page import write_report

        report = write_report(out)
    if args.json:
        print(json.dumps(summary, indent=1))
    else:
        _print(out, summary, report, args)
    for failure in summary["failures"]:
        print(
            f"ditaccel: failed: {failure['config']} {failure['sample']}: {failure['error']}",
            file=sys.stderr,
        )
    return 3 if summary["failures"] else 0


def _print(
    out: Path, summary: dict[str, Any], report: Path | None, args: argparse.Namespace
) -> None:
    from .metrics.base import Need, metrics
    from .report.page import plain_table
    from .store import SUMMARY

    print(plain_table(out))
    print()
    for verdict in summary["verdicts"]:
        print(f"- {verdict['text']}")
    # What the user has not given is no news: such metrics are only named.
    offered = {Need.WEIGHTS} if args.real else {Need.WEIGHTS, Need.REFERENCE}
    optional = {metric.key for metric in metrics() if offered & set(metric.needs)}
    reasons: dict[str, list[str]] = {}
    more = [key for key in summary["not_available"] if key in optional]
    for what, how in (summary["unavailable"] | summary["not_available"]).items():
        if what not in more:
            reasons.setdefault(how, []).append(what)
    for how, what in reasons.items():
        print(f"- not available: {', '.join(what)}: {how}")
    if more:
        where = "the report" if report else f"{SUMMARY} (not_available)"
        print(f"- with weights or real samples of yours: {', '.join(more)}; {where} says how")
    print(f"\nreport: {report}" if report else f"\nresults: {out}")
