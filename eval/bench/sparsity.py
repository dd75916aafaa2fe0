"""How sparse is a model's attention? Mass against density per layer and head, and how it lasts.

    ditaccel bench sparsity samples/models/shapes-wan --limit 1

For every layer and head of a dense run: the least share of tokens, and of tiles, that carries a
given part of the softmax mass (mean over queries); and how much of that set is still right at the
next sampled step. It says beforehand what an attention method can save on a model.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict

import torch
from torch import Tensor

from ditaccel.attention.engine.planner import LayerContext, State, Watcher
from ditaccel.errors import UsageError
from ditaccel.io.arguments import add_steps, number
from ditaccel.io.given import whole_argument as whole
from ditaccel.io.models import execution_device
from ditaccel.tuning.observe import observed

from .shared import add_csv, add_model, open_subject, run_dense
from .table import write_csv

HELP = "how much of a model's attention carries its mass, per head"

FIELDS = ("model", "layer", "head", "mass", "token_density", "tile_density", "overlap")


def least_share(weights: Tensor, mass: float) -> Tensor:
    """Least share of entries along the last axis whose sum reaches `mass` of the whole."""
    ordered = weights.sort(dim=-1, descending=True).values
    before = ordered.cumsum(-1) - ordered
    return (before < mass * ordered.sum(-1, keepdim=True)).float().mean(-1)


def heaviest(weights: Tensor, mass: float) -> Tensor:
    """The set that `least_share` counts, bool as `weights`."""
    ordered, order = weights.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    keep = before < mass * ordered.sum(-1, keepdim=True)
    return torch.zeros_like(keep).scatter_(-1, order, keep)


def tile_mass(weights: Tensor, q_tile: int, k_tile: int) -> Tensor:
    """Mass of each tile, `(H, L, L)` to `(H, Tq, Tk)`."""
    rows, columns = (-weights.shape[-2] % q_tile), (-weights.shape[-1] % k_tile)
    padded = torch.nn.functional.pad(weights, (0, columns, 0, rows))
    tiles = padded.unflatten(-1, (-1, k_tile)).sum(-1)
    return tiles.unflatten(-2, (-1, q_tile)).sum(-2)


class _Watcher(Watcher):
    """Looks at the weights of some steps."""

    def __init__(self, every: int, masses: list[float], q_tile: int, k_tile: int) -> None:
        self._every, self._masses, self._tiles = every, masses, (q_tile, k_tile)
        # (layer, head, mass) -> token density, tile density, overlap
        self.seen: dict[tuple[int, int, float], list[list[float]]] = defaultdict(
            lambda: [[], [], []]
        )

    def look(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> None:
        """Add up the weights of each head, at steps that are sampled."""
        if context.step.index % self._every:
            return
        group = q.shape[1] // k.shape[1]
        for head in range(q.shape[1]):
            scores = q[0, head].float() @ k[0, head // group].float().T
            weights = (scores * scale).softmax(-1)[None]
            tiles = tile_mass(weights, *self._tiles)
            for mass in self._masses:
                kept = heaviest(tiles, mass)
                row = self.seen[context.layer, head, mass]
                row[0].append(float(least_share(weights, mass).mean()))
                row[1].append(float(kept.float().mean()))
                last = state.get(("kept", head, mass))
                if last is not None:
                    row[2].append(float((kept & last).sum() / kept.sum()))
                state[("kept", head, mass)] = kept


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_model(parser, limit=1)
    add_steps(parser)
    add = parser.add_argument
    add("--every", type=whole("--every", 1), default=5, metavar="N", help="look at every n-th step")
    mass = number("--mass", 0, 1, open_ends=True)
    add("--mass", type=mass, nargs="+", default=[0.9, 0.95], help="parts of the softmax mass")
    add("--q-tile", type=whole("--q-tile", 1), default=128)
    add("--k-tile", type=whole("--k-tile", 1), default=64)
    add_csv(parser)


def run(args: argparse.Namespace) -> int:
    """Watch dense runs; prints a table of layers."""
    subject = open_subject(args, args.limit, num_inference_steps=args.steps)
    watcher = _Watcher(args.every, args.mass, args.q_tile, args.k_tile)
    with observed(subject.pipe, watcher):
        for i in range(len(subject.calls)):
            print(f"dense run {i + 1} of {len(subject.calls)}", file=sys.stderr)
            run_dense(subject, i)
    if not watcher.seen:
        raise UsageError("leaves no attention call to look at; lower it", "every")
    rows = [
        {
            "model": subject.name,
            "layer": layer,
            "head": head,
            "mass": mass,
            "token_density": round(statistics.mean(values[0]), 4),
            "tile_density": round(statistics.mean(values[1]), 4),
            "overlap": round(statistics.mean(values[2]), 4) if values[2] else None,
        }
        for (layer, head, mass), values in sorted(watcher.seen.items())
    ]
    print(f"{subject.name}: least share that carries the mass; tiles {args.q_tile}x{args.k_tile}")
    print(f"{'layer':>6}{'head':>6}{'mass':>7}{'tokens':>9}{'tiles':>9}{'kept on':>9}")
    for r in rows:
        on = "-" if r["overlap"] is None else f"{r['overlap']:.2f}"
        print(
            f"{r['layer']:>6}{r['head']:>6}{r['mass']:>7}{r['token_density']:>9.3f}"
            f"{r['tile_density']:>9.3f}{on:>9}"
        )
    write_csv(args.out, FIELDS, rows, execution_device(subject.pipe))
    return 0
