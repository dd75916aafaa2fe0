"""Are presets ordered? Quality, computed share and estimated error over steps and seeds.

    ditaccel bench presets samples/models/shapes-flux --steps 8 16 25 50 --seeds 100 101 102 103

Every generation is really run, dense and with each config, from the same noise: what a method does
to the outputs of a dense run says nothing of the error that it carries on. Quality is PSNR of the
decoded output against dense. `left` is the error that the report saw forecasts leave in the
latents; `ditaccel bench calibration` holds it against the PSNR.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import ditaccel
from ditaccel.errors import UsageError
from ditaccel.models import load_pipeline, read_prompts, read_sheet

from ..metrics.psnr import from_mse, mean_squared_error
from ..sampler import Sampler

PRESETS = ("safe", "balanced", "fast")
FIELDS = ("model", "config", "steps", "seed", "prompt", "psnr", "computed", "left")
# Prompts are far from one another, so that few seeds see many kinds of them.
_STRIDE = 7

Row = dict[str, Any]


def measure(
    pipe: Any,
    sheet: Any,
    configs: Sequence[str],
    steps: Sequence[int],
    seeds: Sequence[int],
    prompts: Sequence[str],
    progress: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """One row for each config, number of steps and seed.

    Args:
        pipe: an unaccelerated pipeline.
        sheet: its `ditaccel.models.Sheet`.
        configs: presets or specs.
        steps: numbers of scheduler steps.
        seeds: of the noise; each goes with one prompt.
        prompts: texts, or class names.
        progress: called with every row.
    """
    rows = []
    for count in steps:
        sampler = Sampler(pipe, sheet.call, count, sheet.negative_prompt)
        for seed in seeds:
            prompt = prompts[seed * _STRIDE % len(prompts)]
            dense = sampler.generate(pipe, prompt, seed).frames
            for config in configs:
                with warnings.catch_warnings(), ditaccel.accelerated(pipe, config):
                    warnings.simplefilter("ignore")  # that few steps leave nothing to skip
                    frames = sampler.generate(pipe, prompt, seed).frames
                    report = ditaccel.report(pipe)
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
            first, second = found[model, steps, better], found[model, steps, faster]
            place = f"{model} at {steps} steps: {better} against {faster}".strip()
            if first[0] < second[0]:
                lines.append(f"{place}: {first[0]:.1f} dB, {second[0]:.1f} dB")
            if first[2] < second[2]:
                lines.append(f"{place}: computed {first[2]:.3f}, {second[2]:.3f}")
    return lines


def write(path: Path, rows: Sequence[Row]) -> None:
    """Append rows to a CSV, with a header where it is new."""
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[Row]:
    """Rows of such a CSV.

    Raises:
        UsageError: no file, or another table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows: list[Row] = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error})") from None
    if tuple(reader.fieldnames or ()) != FIELDS:
        raise UsageError(f"{path} is no table of `ditaccel bench presets`: {', '.join(FIELDS)}")
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    parser.add_argument("model", type=Path, help="folder of a model with a sample.json")
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 16, 25, 50])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(100, 104)))
    parser.add_argument("--config", nargs="+", default=list(PRESETS), help="presets or specs")
    parser.add_argument("--prompts", type=Path, help="prompt file (default: the model's own)")
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="CSV to append to")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; 1 where the presets are out of order."""
    if min(*args.steps, args.threads, 1) < 1:
        raise UsageError("--steps and --threads are at least 1")
    sheet = read_sheet(args.model)
    path = args.prompts or sheet.prompts
    if path is None:
        raise UsageError(f"{args.model} names no prompts; give --prompts FILE")
    torch.set_num_threads(args.threads)
    pipe = load_pipeline(args.model, args.device)

    def say(row: Row) -> None:
        row["model"] = args.model.name
        if args.out is not None:
            write(args.out, [row])  # at once: the grid may take hours
        print("{config} {steps} steps, seed {seed}: {psnr} dB".format_map(row), file=sys.stderr)

    rows = measure(pipe, sheet, args.config, args.steps, args.seeds, read_prompts(path), say)
    print(f"{'steps':>5}  {'config':<30}{'PSNR':>8}{'least':>8}{'computed':>10}")
    for (_, steps, config), (mean, least, share) in means(rows).items():
        print(f"{steps:>5}  {config:<30}{mean:>8.1f}{least:>8.1f}{share:>10.3f}")
    ordered = [name for name in PRESETS if name in args.config]
    lines = disorder(rows, ordered)
    print("\n".join(["Out of order:", *lines] if lines else ["Presets are in order."]))
    return 1 if lines else 0
