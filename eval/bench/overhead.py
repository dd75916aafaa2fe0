"""What a cache costs on a computed step, and what a forecast step costs, by dense, in one run.

    ditaccel bench overhead samples/models/shapes-wan

The transformer's calls of a real generation are recorded once and played again, dense and with the
method in turns, so that noise of the machine hits both alike; ratios are of medians.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ditaccel
from ditaccel.errors import UsageError

METHODS = {
    # spec that computes every step -> what a user would take
    "confidence_gated_taylor": ("threshold=0,order=1,block_order=3", "threshold=1e9,block_order=3"),
    "adaptive_taylor": ("tolerance=0", "tolerance=1e9,max_interval=1000"),
    "first_block_residual": ("threshold=0", "threshold=1e9"),
    "taylorseer": ("interval=1,granularity=last_block", "interval=1000,granularity=last_block"),
    "taylorseer (module)": ("interval=1", "interval=1000"),
}
FIELDS = ("model", "method", "step", "dense_ms", "method_ms", "ratio", "repeats")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def record(pipe: Any, call: dict[str, Any], steps: int) -> list[tuple[Any, Any]]:
    """Return the arguments of all transformer calls of one generation."""
    calls: list[tuple[Any, Any]] = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    try:
        with torch.no_grad():
            pipe(**{**call, "num_inference_steps": steps}, output_type="latent")
    finally:
        handle.remove()
    return calls


def play(transformer: torch.nn.Module, calls: list[tuple[Any, Any]]) -> list[float]:
    """Run recorded calls; returns seconds of each."""
    seconds = []
    with torch.no_grad():
        for args, kwargs in calls:
            _synchronize()
            start = time.perf_counter()
            transformer(*args, **kwargs)
            _synchronize()
            seconds.append(time.perf_counter() - start)
    return seconds


def measure(
    pipe: Any,
    calls: list[tuple[Any, Any]],
    repeats: int,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Return one row per method and kind of step."""
    rows = []
    transformer = pipe.transformer
    play(transformer, calls)  # warm-up
    for name, specs in METHODS.items():
        for kind, options in zip(("computed", "forecast"), specs, strict=True):
            progress(f"{name}: {kind} steps")
            dense: list[float] = []
            ours: list[float] = []
            for _ in range(repeats):
                dense += play(transformer, calls)
                with ditaccel.accelerated(pipe, f"{name.split()[0]}:{options}"):
                    seconds = play(transformer, calls)
                    actions = [c.action for c in ditaccel.report(pipe).calls]
                wanted = "compute" if kind == "computed" else "forecast"
                ours += [s for s, a in zip(seconds, actions, strict=True) if a == wanted]
            a, b = statistics.median(dense), statistics.median(ours)
            rows.append(
                {
                    "method": name,
                    "step": kind,
                    "dense_ms": round(1e3 * a, 3),
                    "method_ms": round(1e3 * b, 3),
                    "ratio": round(b / a, 4),
                    "repeats": len(ours),
                }
            )
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    parser.add_argument("model", type=Path, help="folder of a sample model")
    parser.add_argument("--steps", type=int, default=10, help="steps of the recorded generation")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="CSV to append to")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; prints a table and, with `--out`, writes a CSV."""
    try:
        sample = json.loads((args.model / "sample.json").read_text())
    except OSError as error:
        raise UsageError(f"{args.model} is no sample model: {error}") from None
    from ditaccel.models import load_pipeline

    pipe = load_pipeline(args.model)
    pipe.set_progress_bar_config(disable=True)
    call = dict(sample["call"])
    if sample["task"] == "class-to-image":
        call["class_labels"] = [0]
    else:
        call["prompt"] = "a red circle"
    calls = record(pipe, call, args.steps)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    print(
        f"{args.model.name}: {len(calls)} transformer calls, {args.repeats} repeats, "
        f"{device or platform.machine()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}"
    )
    rows = measure(pipe, calls, args.repeats, lambda line: print(line, file=sys.stderr))
    print(f"{'method':<26}{'step':<10}{'dense ms':>10}{'ours ms':>10}{'ratio':>8}")
    for row in rows:
        print(
            f"{row['method']:<26}{row['step']:<10}{row['dense_ms']:>10}{row['method_ms']:>10}"
            f"{row['ratio']:>8}"
        )
    if args.out is not None:
        fresh = not args.out.exists()
        with args.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if fresh:
                writer.writeheader()
            writer.writerows({"model": args.model.name, **row} for row in rows)
    return 0
