"""Tile attention against dense attention of the same size, in one run.

    ditaccel bench attention --lengths 4096 8192 --density 0.5 0.25 0.1 0.05

Maps are random, with equally many key tiles for every query tile. `linear` is the share of the
ideal that is reached: dense time x density / time; TFLOP/s count computed tiles only. Beside the
kernel it times what a method does per call: building the map, marking, and SVG2's planning.
Medians of turns taken by all. `--precision int8` times 8-bit scores, quantisation included; dense
attention stays in the model's precision.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch
import torch.nn.functional as F
from ditaccel.kernels import Marking, Precision, TileMap, Tiling, tile_attention
from torch import Tensor

from ditaccel.attention.engine.planner import LayerContext, Plan, State
from ditaccel.attention.svg2 import SVG2Config, SVG2Planner
from ditaccel.core.denoising.tracker import DenoisingStep
from ditaccel.io.arguments import number
from ditaccel.io.opening import choose_device, use_threads

from .shared import add_kernel, backend_of
from .table import machine_line, write_csv

HELP = "tile attention against dense attention, over lengths and densities"

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FIELDS = (
    "backend", "dtype", "precision", "heads", "head_dim", "length", "density", "sdpa_ms",
    "tiles_ms", "marking_ms", "map_ms", "speedup", "linear", "sdpa_tflops", "tiles_tflops",
)  # fmt: skip


def _timed(device: torch.device, work: Callable[[], Any]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(
    device: torch.device, works: dict[str, Callable[[], Any]], repeats: int
) -> dict[str, float]:
    """Median milliseconds of each piece of work; they take turns, so noise hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            took = _timed(device, work)
            if turn:  # the first turn warms up
                seconds[name].append(took)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def random_map(
    heads: int, q_tiling: Tiling, k_tiling: Tiling, density: float, device: torch.device
) -> Tensor:
    """Bool `(1, H, Tq, Tk)` with equally many tiles in every row."""
    scores = torch.rand(1, heads, q_tiling.tiles, k_tiling.tiles, device=device)
    count = max(1, round(density * k_tiling.tiles))
    kept = scores.topk(count, dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, kept, True)


def slope(densities: list[float], times: list[float]) -> float:
    """Slope of log time over log density by least squares: 1 is a line through the origin."""
    x, y = [math.log(d) for d in densities], [math.log(t) for t in times]
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum(
        (a - mean_x) ** 2 for a in x
    )


def measure(args: argparse.Namespace, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row per length, dtype and density."""
    device = torch.device(choose_device(args.device))
    rows = []
    for dtype in args.dtype:
        for length in args.lengths:
            shape = (1, length, args.heads, args.head_dim)
            q, k, v = (
                torch.randn(shape, device=device).to(DTYPES[dtype]).transpose(1, 2)
                for _ in range(3)
            )
            tilings = Tiling.fixed(length, args.q_tile), Tiling.fixed(length, args.k_tile)
            works: dict[str, Callable[[], Any]] = {
                "sdpa": partial(F.scaled_dot_product_attention, q, k, v)
            }
            for density in args.density:
                mask = random_map(args.heads, *tilings, density, device)
                tile_map = TileMap.from_mask(mask, *tilings)
                tiles = partial(
                    tile_attention, q, k, v, tile_map,
                    precision=args.precision, backend=args.backend,
                )  # fmt: skip
                works[f"tiles {density}"] = tiles
                works[f"marking {density}"] = partial(tiles, marking=Marking(-10.0))
                works[f"map {density}"] = partial(TileMap.from_mask, mask, *tilings)
            progress(f"{dtype}, {length} tokens")
            took = in_turns(device, works, args.repeats)
            # two products of L x L x D, a multiplication and an addition each
            work = 4.0 * args.heads * args.head_dim * length**2
            for density in args.density:
                kept = TileMap.from_mask(
                    random_map(args.heads, *tilings, density, device), *tilings
                ).density()
                rows.append(
                    {
                        "backend": args.backend or "auto",
                        "dtype": dtype,
                        "precision": args.precision,
                        "heads": args.heads,
                        "head_dim": args.head_dim,
                        "length": length,
                        "density": round(kept, 4),
                        "sdpa_ms": round(took["sdpa"], 3),
                        "tiles_ms": round(took[f"tiles {density}"], 3),
                        "marking_ms": round(took[f"marking {density}"], 3),
                        "map_ms": round(took[f"map {density}"], 3),
                        "speedup": round(took["sdpa"] / took[f"tiles {density}"], 3),
                        "linear": round(took["sdpa"] * kept / took[f"tiles {density}"], 3),
                        "sdpa_tflops": round(work / took["sdpa"] / 1e9, 3),
                        "tiles_tflops": round(work * kept / took[f"tiles {density}"] / 1e9, 3),
                    }
                )
    return rows


def _plan(planner: SVG2Planner, state: State, q: Tensor, k: Tensor, v: Tensor) -> None:
    """What SVG2 does around the kernel, over the steps that one clustering serves."""
    state.pop("sides", None)  # the centroids stay: the next clustering is warm
    for index in range(planner.config.refresh):
        step = DenoisingStep(0, index, "cond", 500.0, sigma=0.5, total=50)
        context = LayerContext(step, layer=1, layers=2, length=q.shape[2])
        plan = planner.plan(q, k, v, q.shape[-1] ** -0.5, context, state)
        assert isinstance(plan, Plan) and plan.order is not None
        for x in (k, v):
            plan.order.keys(x)
        plan.order.back(plan.order.queries(q))


def measure_planning(
    args: argparse.Namespace, progress: Callable[[str], None]
) -> list[tuple[str, int, float, float]]:
    """(dtype, length, clustering, maps and permutation in ms per step, SDPA in ms) of SVG2."""
    device = torch.device(choose_device(args.device))
    planner = SVG2Config(dense_steps=0, dense_layers=0, first_iterations=1, min_tokens=0).planner()
    rows = []
    for dtype in args.dtype:
        for length in args.lengths:
            shape = (1, args.heads, length, args.head_dim)
            q, k, v = (torch.randn(shape, device=device).to(DTYPES[dtype]) for _ in range(3))
            state: State = {}
            progress(f"{dtype}, {length} tokens, SVG2's planning")
            works: dict[str, Callable[[], Any]] = {
                "plan": partial(_plan, planner, state, q, k, v),
                "sdpa": partial(F.scaled_dot_product_attention, q, k, v),
            }
            took = in_turns(device, works, args.repeats)
            rows.append((dtype, length, took["plan"] / planner.config.refresh, took["sdpa"]))
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_kernel(parser, (4096, 8192, 16384), ("triton", "flex", "torch"))
    parser.add_argument(
        "--density",
        type=number("--density", 1e-6, 1),
        nargs="+",
        default=[0.5, 0.25, 0.1, 0.05],
        metavar="SHARE",
        help="computed shares of the tiles (default 0.5 0.25 0.1 0.05)",
    )

    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="model",
        help="of the scores (default: that of the model)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; prints tables and, with `--out`, writes a CSV."""
    device = choose_device(args.device)
    use_threads(args.threads, device)
    with torch.no_grad(), backend_of(args.backend):
        rows = measure(args, lambda line: print(line, file=sys.stderr))
        planning = measure_planning(args, lambda line: print(line, file=sys.stderr))
    print(
        f"{machine_line(device)}\nbackend {rows[0]['backend']}, scores in {args.precision}, "
        f"{args.heads} heads of "
        f"{args.head_dim}, tiles {args.q_tile}x{args.k_tile}, medians of {args.repeats}"
    )
    head = ("dtype", "length", "density", "sdpa_ms", "tiles_ms", "marking_ms", "map_ms")
    widths = {name: max(len(name), 7) for name in (*head, "speedup", "linear")}
    print(" ".join(f"{name:>{width}}" for name, width in widths.items()))
    for row in rows:
        print(" ".join(f"{row[name]!s:>{width}}" for name, width in widths.items()))
    if len(args.density) > 1:
        for dtype in args.dtype:
            for length in args.lengths:
                own = [r for r in rows if (r["dtype"], r["length"]) == (dtype, length)]
                line = slope([r["density"] for r in own], [r["tiles_ms"] for r in own])
                print(f"{dtype} {length}: slope of log time over log density {line:.2f}")
    for dtype, length, ours, dense in planning:
        print(
            f"{dtype} {length}: SVG2's k-means, maps and permutations {ours:.2f} ms per step, "
            f"{100 * ours / dense:.1f} % of dense attention"
        )
    write_csv(args.out, FIELDS, rows, device)
    return 0
