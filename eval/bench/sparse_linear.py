"""Sparse-linear attention, trained and training-free, against dense and plain sparse attention.

    ditaccel bench sparse_linear --lengths 4096 8192 --critical 0.05 --negligible 0.1

Maps are random; every query tile has equally many critical tiles, which plain sparse attention
computes too. `forward` is the call without gradients (feature maps are timed apart), `backward` the
gradients of all inputs by both outputs, without the forward. `training_free` is what `SLAConfig`
runs without weights: the critical tiles, the marginal ones through their moments, and one softmax
over both; `moments` the part of it that makes those of the key tiles. Medians of turns taken by
all. On a GPU, `…_mb` is the memory that a forward and backward take beyond their inputs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from ditaccel.kernels import (
    FEATURE_MAPS,
    TileMap,
    Tiling,
    feature_map,
    merge_attention,
    moment_attention,
    sparse_linear_attention,
    tile_attention,
    tile_moments,
)
from torch import Tensor

from ditaccel.errors import UsageError
from ditaccel.io.opening import choose_device, use_threads

from .attention import DTYPES, in_turns, random_map
from .shared import add_kernel, backend_of
from .table import machine_line, write_csv

HELP = "sparse-linear against dense attention, forward and backward"

TIMES = (
    "sdpa_forward", "sparse_forward", "forward", "features", "training_free", "moments",
    "sdpa_backward", "sparse_backward", "backward",
)  # fmt: skip
FIELDS = (
    "backend", "dtype", "heads", "head_dim", "length", "features", "critical", "negligible",
    *(f"{name}_ms" for name in TIMES), "forward_speedup", "backward_speedup",
    "training_free_speedup", "sdpa_mb", "mb",
)  # fmt: skip


def maps(
    heads: int, tilings: tuple[Tiling, Tiling], shares: tuple[float, float], device: torch.device
) -> tuple[TileMap, Tensor]:
    """Random critical tiles, and marginal ones: all others but the negligible."""
    critical = random_map(heads, *tilings, shares[0], device)
    scores = torch.rand(critical.shape, device=device).masked_fill(critical, -1.0)
    count = min(
        round(shares[1] * tilings[1].tiles), tilings[1].tiles - int(critical[0, 0, 0].sum())
    )
    negligible = torch.zeros_like(critical).scatter_(-1, scores.topk(count).indices, True)
    return TileMap.from_mask(critical, *tilings), ~(critical | negligible)


def _gradients(output: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor]) -> partial[Any]:
    """The backward alone of `output(*inputs)`."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    outputs = output(*inputs)
    weights = [torch.randn_like(x) for x in outputs]
    return partial(torch.autograd.grad, outputs, inputs, weights, retain_graph=True)


def _megabytes(output: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor]) -> float | None:
    """Peak memory of forward and backward beyond the inputs; None on a CPU."""
    if inputs[0].device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _gradients(output, inputs)()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)


def _dense(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
    return (F.scaled_dot_product_attention(q, k, v),)


def _sparse(
    critical: TileMap, backend: str | None, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor]:
    return (tile_attention(q, k, v, critical, backend=backend).output,)


def _both(
    critical: TileMap, marginal: Tensor, backend: str | None, *inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Both branches."""
    q, k, v, q_features, k_features = inputs
    out = sparse_linear_attention(
        *(q, k, v, critical, marginal),
        q_features=q_features,
        k_features=k_features,
        backend=backend,
    )
    return out.sparse, out.linear


def _training_free(
    critical: TileMap, marginal: Tensor, backend: str | None, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """Critical tiles, and marginal ones through their moments."""
    exact = tile_attention(q, k, v, critical, return_lse=True, backend=backend)
    assert exact.lse is not None
    tilings = critical.q_tiling, critical.k_tiling
    moments = tile_moments(k, v, tilings[1], backend=backend)
    part = moment_attention(q, k, v, marginal, *tilings, moments=moments, backend=backend)
    return merge_attention((exact.output, exact.lse), part, backend=backend)[0]


def measure(args: argparse.Namespace, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row per length and dtype."""
    device = torch.device(choose_device(args.device))
    rows = []
    for dtype in args.dtype:
        for length in args.lengths:
            progress(f"{dtype}, {length} tokens")
            shape = (1, length, args.heads, args.head_dim)
            q, k, v = (
                torch.randn(shape, device=device).to(DTYPES[dtype]).transpose(1, 2)
                for _ in range(3)
            )
            tilings = Tiling.fixed(length, args.q_tile), Tiling.fixed(length, args.k_tile)
            critical, marginal = maps(args.heads, tilings, (args.critical, args.negligible), device)
            features = feature_map(args.features)

            ours = partial(_both, critical, marginal, args.backend)
            inputs = [q, k, v, *features(q, k)]
            sparse = partial(_sparse, critical, args.backend)
            works: dict[str, Callable[[], Any]] = {
                "sdpa_forward": partial(_dense, q, k, v),
                "sparse_forward": partial(sparse, q, k, v),
                "forward": partial(ours, *inputs),
                "features": partial(features, q, k),
                "training_free": partial(_training_free, critical, marginal, args.backend, q, k, v),
                "moments": partial(tile_moments, k, v, tilings[1], backend=args.backend),
                "sdpa_backward": _gradients(_dense, [q, k, v]),
                "sparse_backward": _gradients(sparse, [q, k, v]),
                "backward": _gradients(ours, inputs),
            }
            took = in_turns(device, works, args.repeats)
            row = {
                "backend": args.backend or "auto",
                "dtype": dtype,
                "heads": args.heads,
                "head_dim": args.head_dim,
                "length": length,
                "features": args.features,
                "critical": round(critical.density(), 4),
                "negligible": round(
                    1 - critical.density(False) - float(marginal.double().mean()), 4
                ),
                **{f"{name}_ms": round(took[name], 3) for name in TIMES},
                "forward_speedup": round(took["sdpa_forward"] / took["forward"], 3),
                "backward_speedup": round(took["sdpa_backward"] / took["backward"], 3),
                "training_free_speedup": round(took["sdpa_forward"] / took["training_free"], 3),
            }
            del works
            row["sdpa_mb"] = _megabytes(_dense, [q, k, v])
            row["mb"] = _megabytes(ours, inputs)
            rows.append(row)
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_kernel(parser, (4096, 8192), ("triton", "torch"))
    add = parser.add_argument
    for name, default in (("critical", 0.05), ("negligible", 0.1)):
        text = f"share of {name} tiles (default {default})"
        add(f"--{name}", type=float, default=default, metavar="SHARE", help=text)
    add("--features", choices=FEATURE_MAPS, default="softmax", help="(default softmax)")
    add(
        "--at-least",
        type=float,
        nargs=2,
        metavar=("FORWARD", "BACKWARD"),
        help="speed-ups over SDPA that every row must reach; exit code 1 otherwise",
    )


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; prints a table and, with `--out`, writes a CSV."""
    if not 0 < args.critical <= 1 or not 0 <= args.negligible <= 1 - args.critical:
        raise UsageError(
            f"--critical {args.critical} --negligible {args.negligible}: give shares of the tiles, "
            "critical above 0, and no more than 1 together"
        )
    device = choose_device(args.device)
    use_threads(args.threads, device)
    with backend_of(args.backend):
        rows = measure(args, lambda line: print(line, file=sys.stderr))
    print(
        f"{machine_line(device)}\nbackend {rows[0]['backend']}, {args.heads} heads of "
        f"{args.head_dim}, tiles {args.q_tile}x{args.k_tile}, {args.features} features, medians of "
        f"{args.repeats}"
    )
    # Many figures of few cases: each case is a column.
    head = ("dtype", "length", "critical", "negligible", *(f"{name}_ms" for name in TIMES))
    head += ("forward_speedup", "backward_speedup", "training_free_speedup", "sdpa_mb", "mb")
    for name in head:
        cells = ("-" if row[name] is None else row[name] for row in rows)
        print(f"{name:<21}" + "".join(f" {cell!s:>11}" for cell in cells))
    write_csv(args.out, FIELDS, rows, device)
    short = []
    for row in rows if args.at_least else ():
        for way, wanted in zip(("forward", "backward"), args.at_least, strict=True):
            if row[f"{way}_speedup"] < wanted:
                short.append(
                    f"{row['dtype']} {row['length']}: {way} {row[f'{way}_speedup']}x, wanted "
                    f"{wanted}x"
                )
    if args.at_least:
        print("\n".join(short) or "every speed-up reached")
    return 1 if short else 0
