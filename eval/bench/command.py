"""`ditaccel bench …`: speed of parts, as ratios measured in one run."""

from __future__ import annotations

import argparse

from . import (
    attention,
    batch,
    calibration,
    overhead,
    presets,
    sla,
    sparse_linear,
    sparsity,
    trajectory,
)

BENCHES = {
    "attention": (attention, "tile attention by dense attention, over lengths and densities"),
    "sparse_linear": (sparse_linear, "sparse-linear attention by dense attention, both ways"),
    "sla": (sla, "error of what may stand for tiles that are not computed"),
    "batch": (batch, "a batch job by the plain loop, caching off"),
    "overhead": (overhead, "what a cache costs on a computed and on a forecast step"),
    "presets": (presets, "quality and computed share of presets, over steps and seeds"),
    "calibration": (calibration, "what PSNR to expect from the error that is left in the latents"),
    "sparsity": (sparsity, "how much of a model's attention carries its mass, per head"),
    "trajectory": (trajectory, "how hard a model is: how its outputs move, what half the steps do"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One subcommand for each benchmark."""
    parts = parser.add_subparsers(dest="bench", metavar="BENCH", required=True)
    for name, (module, text) in BENCHES.items():
        module.add_arguments(parts.add_parser(name, help=text, description=text))


def run(args: argparse.Namespace) -> int:
    """Run the chosen benchmark."""
    return int(BENCHES[args.bench][0].run(args))
