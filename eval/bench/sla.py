"""What may stand for tiles that are not computed? Output error of each way, at equal density.

    ditaccel bench sla samples/models/shapes-wan --steps 20

Watches a dense run. At sampled steps and layers every way computes its own output from the same
queries, keys and values, and is compared with the dense one: the relative root mean square error
over all channels of a call, mean over calls. The critical tiles are those of the published map, in
the order of the model, but for the last two rows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from typing import Any

import torch
from ditaccel.kernels import (
    FEATURE_MAPS,
    TileCentroids,
    TileMap,
    feature_map,
    pool_tiles,
    score_variance,
    sparse_linear_attention,
    tile_attention,
    tile_moments,
)
from torch import Tensor

from ditaccel.attention.engine.attend import attend
from ditaccel.attention.engine.planner import LayerContext, Plan, State, Watcher
from ditaccel.attention.sla import SLAConfig
from ditaccel.errors import UsageError
from ditaccel.io.arguments import add_steps, number
from ditaccel.io.given import whole_argument as whole
from ditaccel.io.models import execution_device
from ditaccel.tuning.observe import observed

from .shared import add_csv, add_model, open_subject, run_dense
from .table import write_csv

HELP = "error of each stand-in for tiles that are not computed"

FIELDS = ("model", "critical", "way", "density", "error", "calls")
_RIDGE = 1e-4


def relative(out: Tensor, dense: Tensor) -> float:
    """Root mean square error by the root mean square of the dense output."""
    return float((out - dense).float().norm() / dense.float().norm())


def best_projection(linear: Tensor, wanted: Tensor) -> Tensor:
    """`linear` through the D x D matrix and offset of each head that fit `wanted` best."""
    x = torch.nn.functional.pad(linear.double(), (0, 1), value=1.0)
    products = x.mT @ x
    size = products.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    ridge = _RIDGE * size * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return (x @ torch.linalg.solve(products + ridge, x.mT @ wanted.double())).to(linear.dtype)


class _Watcher(Watcher):
    """Tries every way on some of the calls."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        # (critical, way) -> [errors], [densities]
        self.seen: dict[tuple[float, str], list[list[float]]] = defaultdict(lambda: [[], []])

    def look(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> None:
        """Try every way, on calls that are sampled."""
        sampled = context.step.index % self._args.every == self._args.every // 2
        if sampled and context.layer % self._args.layers == self._args.layers // 2:
            with torch.no_grad():
                self._try(q, k, v, scale, context)

    def _try(self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext) -> None:
        grouped = q.shape[1] != k.shape[1]
        dense = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, scale=scale, enable_gqa=grouped
        )
        for critical in self._args.critical:

            def add(way: str, out: Tensor, tile_map: TileMap, critical: float = critical) -> None:
                row = self.seen[critical, way]
                row[0].append(relative(out, dense))
                row[1].append(tile_map.density())

            shared = {
                "critical": critical,
                "negligible": 0,
                "dense_steps": 0,
                "q_tile": self._args.q_tile,
                "k_tile": self._args.k_tile,
            }

            def planned(shared: dict[str, Any] = shared, **options: Any) -> Plan:
                plan = SLAConfig(**shared, **options).planner().plan(q, k, v, scale, context, {})
                assert isinstance(plan, Plan)
                return plan

            plan = planned(mode="sparse", cube=())
            sparse = attend(plan, q, k, v, scale).output
            add("plain sparse", sparse, plan.tile_map)
            self._linear(q, k, v, scale, plan.tile_map, sparse, dense, add)
            self._means(q, k, v, scale, plan.tile_map, add)
            for way, options in (
                ("moments", {"cube": (), "choose_by": "mass"}),
                ("moments, chosen by error", {"cube": ()}),
                ("moments, chosen by error, cubes", {}),
            ):
                plan = planned(mode="training_free", **options)
                add(way, attend(plan, q, k, v, scale).output, plan.tile_map)

    def _linear(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        tile_map: TileMap,
        sparse: Tensor,
        dense: Tensor,
        add: Any,
    ) -> None:
        """Published SLA: its projection the identity, and the best one of each single call."""
        for name in FEATURE_MAPS:
            features = feature_map(name)(q, k)
            linear = sparse_linear_attention(
                *(q, k, v, tile_map, ~tile_map.to_mask()),
                q_features=features[0],
                k_features=features[1],
                scale=scale,
            ).linear
            add(f"SLA, projection 1, {name}", sparse + linear, tile_map)
            fitted = sparse + best_projection(linear, dense - sparse)
            add(f"SLA, projection fitted to the call, {name}", fitted, tile_map)

    def _means(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, tile_map: TileMap, add: Any
    ) -> None:
        """Mean keys and values of marginal tiles under the softmax, with and without their bias."""
        moments = tile_moments(k, v, tile_map.k_tiling)
        half = score_variance(pool_tiles(q, tile_map.q_tiling), moments, scale) / 2
        for way, bias in (("means", None), ("means, spread of keys", half.log1p())):
            stand_in = TileCentroids(moments.keys, moments.values, bias)
            out = tile_attention(q, k, v, tile_map, scale=scale, centroids=stand_in).output
            add(way, out, tile_map)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_model(parser, limit=1)
    add_steps(parser)
    add = parser.add_argument
    add("--every", type=whole("--every", 1), default=5, metavar="N", help="look at every n-th step")
    add(
        "--layers",
        type=whole("--layers", 1),
        default=2,
        metavar="N",
        help="look at every n-th layer (default 2)",
    )
    share = number("--critical", 0, 1)
    add("--critical", type=share, nargs="+", default=[0.05, 0.1, 0.2, 0.3], help="shares")
    add("--size", type=whole("--size", 16), help="height and width in pixels")
    add("--q-tile", type=whole("--q-tile", 16), help="by default what the length asks for")
    add("--k-tile", type=whole("--k-tile", 16))
    add_csv(parser)


def run(args: argparse.Namespace) -> int:
    """Watch dense runs; prints a table of errors."""
    size = args.size
    subject = open_subject(
        args, args.limit, num_inference_steps=args.steps, height=size, width=size
    )
    watcher = _Watcher(args)
    with observed(subject.pipe, watcher):
        for i in range(len(subject.calls)):
            print(f"dense run {i + 1} of {len(subject.calls)}", file=sys.stderr)
            run_dense(subject, i)
    if not watcher.seen:
        raise UsageError("leaves no attention call to look at; lower it, or `layers`", "every")
    rows = [
        {
            "model": subject.name,
            "critical": critical,
            "way": way,
            "density": round(statistics.mean(values[1]), 4),
            "error": round(statistics.mean(values[0]), 4),
            "calls": len(values[0]),
        }
        for (critical, way), values in watcher.seen.items()
    ]
    ways = list(dict.fromkeys(r["way"] for r in rows))
    print(f"{subject.name}: relative error of attention's output, {rows[0]['calls']} calls")
    print(f"{'share of critical tiles':<46}" + "".join(f"{c:>9g}" for c in args.critical))
    for way in ways:
        errors = [r["error"] for r in rows if r["way"] == way]
        print(f"{way:<46}" + "".join(f"{e:>9.3f}" for e in errors))
    write_csv(args.out, FIELDS, rows, execution_device(subject.pipe))
    return 0
