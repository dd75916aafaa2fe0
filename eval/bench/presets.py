"""Are presets ordered? Quality, computed share and estimated error over steps and seeds.

    ditaccel bench presets samples/models/shapes-flux --steps 8 16 25 50 --seeds 100 101 102 103

Every generation is really run, dense and with each config, from the same noise: what a method does
to the outputs of a dense run says nothing of the error that it carries on. Quality is PSNR of the
decoded output against dense. `left` is the error that the report saw forecasts leave in the
latents; `ditaccel bench calibration` holds it against the PSNR.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ditaccel import api
from ditaccel.io.asking import default_call
from ditaccel.io.given import whole_argument as whole
from ditaccel.io.models import execution_device, prompts_for, read_sheet

from ..comparison.sampler import Sampler
from ..metrics.psnr import from_mse, mean_squared_error
from .shared import add_csv, add_model, open_model
from .table import read_csv, write_csv

HELP = "quality and computed share of presets, over steps and seeds"

PRESETS = ("safe", "balanced", "fast")
FIELDS = ("model", "config", "steps", "seed", "prompt", "psnr", "computed", "left")
# Prompts are far from one another, so that few seeds see many kinds of them.
_STRIDE = 7

Row = dict[str, Any]


def measure(
    pipe: Any,
    call: dict[str, Any],
    configs: Sequence[str],
    steps: Sequence[int],
    seeds: Sequence[int],
    prompts: Sequence[str],
    progress: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """One row for each config, number of steps and seed.

    Args:
        pipe: an unaccelerated pipeline.
        call: arguments of its call (`Sampler`).
        configs: presets or specs.
        steps: numbers of scheduler steps.
        seeds: of the noise; each goes with one prompt.
        prompts: texts, or class names.
        progress: called with every row.
    """
    rows = []
    for count in steps:
        sampler = Sampler(pipe, call, count)
        for seed in seeds:
            prompt = prompts[seed * _STRIDE % len(prompts)]
            dense = sampler.generate(pipe, prompt, seed).frames
            for config in configs:
                with warnings.catch_warnings(), api.accelerated(pipe, config):
                    warnings.simplefilter("ignore")  # that few steps leave nothing to skip
                    frames = sampler.generate(pipe, prompt, seed).frames
                    report = api.report(pipe)
                row = {
                    "config": config,
                    "steps": count,
                    "seed": seed,
                    "prompt": prompt,
                    "psnr": round(from_mse(mean_squared_error(dense, frames)), 2),
                    "computed": round(report.computed_share, 4),
                    "left": "" if report.left is None else f"{report.left:.5g}",
                }
                progress(row)
                rows.append(row)
    return rows


def means(rows: Iterable[Row]) -> dict[tuple[str, int, str], tuple[float, float, float]]:
    """Mean PSNR, least PSNR and mean computed share of each model, number of steps and config."""
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in rows:
        key = (row.get("model", ""), int(row["steps"]), row["config"])
        groups.setdefault(key, []).append(row)
    found = {}
    for key, group in groups.items():
        levels = [float(row["psnr"]) for row in group]
        shares = [float(row["computed"]) for row in group]
        found[key] = (sum(levels) / len(group), min(levels), sum(shares) / len(group))
    return found


def disorder(rows: Iterable[Row], order: Sequence[str] = PRESETS) -> list[str]:
    """What is out of order: a slower config with less quality than a faster one, or the reverse.

    Args:
        rows: of `measure`.
        order: configs from the best and slowest to the fastest.
    """
    found = means(rows)
    lines = []
    for model, steps in sorted({key[:2] for key in found}):
        for better, faster in itertools.pairwise(order):
            if not {(model, steps, better), (model, steps, faster)} <= found.keys():
                continue
            first, second = found[model, steps, better], found[model, steps, faster]
            place = f"{model} at {steps} steps: {better} against {faster}".strip()
            if first[0] < second[0]:
                lines.append(f"{place}: {first[0]:.1f} dB, {second[0]:.1f} dB")
            if first[2] < second[2]:
                lines.append(f"{place}: computed {first[2]:.3f}, {second[2]:.3f}")
    return lines


def read(path: Path) -> list[Row]:
    """Rows of such a CSV.

    Raises:
        UsageError: no file, or another table.
    """
    return read_csv(path, FIELDS, "a table of `ditaccel bench presets`")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_model(parser)
    add = parser.add_argument
    add(
        "--steps",
        type=whole("--steps", 1),
        nargs="+",
        default=[8, 16, 25, 50],
        metavar="N",
        help="scheduler steps, one or more (default 8 16 25 50)",
    )
    add(
        "--seeds",
        type=whole("--seeds", 0),
        nargs="+",
        default=list(range(100, 104)),
        metavar="N",
        help="such as 0 1, each with a prompt of its own (default 100 101 102 103)",
    )
    add(
        "--config",
        nargs="+",
        default=list(PRESETS),
        metavar="SPEC",
        help=f"presets or method:option=value (default {' '.join(PRESETS)})",
    )
    add_csv(parser)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; 1 where the presets are out of order."""
    sheet = read_sheet(args.model)
    prompts = prompts_for(args.model, sheet, args.prompts)
    opened = open_model(args)
    device = execution_device(opened.pipe)
    name = Path(args.model).expanduser().resolve().name

    def say(row: Row) -> None:
        row["model"] = name
        # at once: the grid may take hours
        write_csv(args.out, FIELDS, [row], device, quiet=True)
        print("{config} {steps} steps, seed {seed}: {psnr} dB".format_map(row), file=sys.stderr)

    call = default_call(opened.pipe, sheet, {}, opened.call)
    rows = measure(opened.pipe, call, args.config, args.steps, args.seeds, prompts, say)
    print(f"{'steps':>5}  {'config':<30}{'PSNR':>8}{'least':>8}{'computed':>10}")
    for (_, steps, config), (mean, least, share) in means(rows).items():
        print(f"{steps:>5}  {config:<30}{mean:>8.1f}{least:>8.1f}{share:>10.3f}")
    ordered = [each for each in PRESETS if each in args.config]
    lines = disorder(rows, ordered)
    print("\n".join(["Out of order:", *lines] if lines else ["Presets are in order."]))
    return 1 if lines else 0
