"""Fit what PSNR to expect from the error that forecasts leave, and hold it against other runs.

    ditaccel bench calibration eval/bench/results/calibration.csv \\
        --test eval/bench/results/presets.csv

Both are tables of `ditaccel bench presets`, of other seeds, steps and tolerances. The line is
fitted by least squares, each model with the same weight; the interval holds 80 % of the runs so
weighed. Runs that are not to be told from dense (beyond `CEILING`) say nothing of the line and are
left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ditaccel.errors import UsageError
from ditaccel.reports.expectation import CEILING, MEASURED, Calibration

from . import presets

HELP = "PSNR to expect from the error that is left in the latents"

COVERAGE = 0.8


def usable(rows: Sequence[presets.Row]) -> list[presets.Row]:
    """Rows that were forecast, and whose error is known."""
    return [r for r in rows if r["left"] and float(r["left"]) > 0]


def _columns(rows: Sequence[presets.Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decades of error, PSNR, and weights by which each model counts alike."""
    models = [row["model"] for row in rows]
    weights = np.array([1.0 / models.count(model) for model in models])
    decades = np.log10([float(row["left"]) for row in rows])
    return decades, np.array([float(row["psnr"]) for row in rows]), weights / weights.sum()


def _quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    order = np.argsort(values)
    return float(np.interp(share, np.cumsum(weights[order]) - weights[order] / 2, values[order]))


def fit(rows: Sequence[presets.Row]) -> Calibration:
    """The line and the interval about it.

    Raises:
        UsageError: too few runs.
    """
    decades, psnr, weights = _columns([r for r in usable(rows) if float(r["psnr"]) < CEILING])
    if len(psnr) < 10:
        raise UsageError(f"{len(psnr)} runs with forecasts are too few to fit; give 10 or more")
    root = np.sqrt(weights)
    design = np.stack([np.ones_like(decades), -decades], 1)
    (level, slope), *_ = np.linalg.lstsq(design * root[:, None], psnr * root, rcond=None)
    rest = psnr - design @ np.array([level, slope])
    low, high = (_quantile(rest, weights, x) for x in ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2))
    level, slope, low, high = (round(float(x), 1) for x in (level, slope, low, high))
    return Calibration(level, slope, low, high, COVERAGE)


def coverage(calibration: Calibration, rows: Sequence[presets.Row]) -> dict[str, float]:
    """Share of each model's runs whose PSNR lies in the interval that was expected."""
    inside: dict[str, list[bool]] = {}
    for row in usable(rows):
        expected = calibration.expect(float(row["left"]))
        psnr = min(float(row["psnr"]), CEILING)
        inside.setdefault(row["model"], []).append(expected.low <= psnr <= expected.high)
    return {model: sum(hits) / len(hits) for model, hits in inside.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    parser.add_argument("table", type=Path, help="CSV of `ditaccel bench presets` to fit")
    parser.add_argument("--test", type=Path, help="another one, to see how often it is right")


def run(args: argparse.Namespace) -> int:
    """Print the constants, and how often they are right."""
    found = fit(presets.read(args.table))
    print(f"fitted:   {found}")
    print(f"in force: {MEASURED}")
    if args.test is not None:
        for model, share in coverage(MEASURED, presets.read(args.test)).items():
            print(f"{model}: {100 * share:.0f} % of its runs in the interval in force")
    return 0
