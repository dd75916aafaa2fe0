"""Random calls of the kernels, each held against its definition in float64.

    python -m ditaccel.kernels.fuzz --cases 10000
    TRITON_INTERPRET=1 python -m ditaccel.kernels.fuzz --cases 500 --backend triton

A case is drawn from its seed alone, so one that fails is run again with `--seed N --cases 1`.

Marks must be equal bit by bit. Half of the cases make that well defined by inputs that are small
integers: every score is then exact in float32, in any order of summation, and the comparison itself
is float32 in all backends. The other half have normal inputs; there a backend's marks must lie
between those of the definition at a threshold a thousandth lower and a thousandth higher.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import attention
from .attention import Marking, tile_attention
from .attention.call import TileAttentionOutput, TileCentroids, check_call
from .clustering import kmeans
from .moments.fuzz import check_moments
from .permutation import inverse_permute, order_by_label, permute
from .pooling import pool_tiles
from .sparse_linear.fuzz import check_sparse_linear
from .tile_map import TileMap
from .tiling import Tiling

# Relative RMSE against float64 on the same inputs. In half precision the weights are rounded to the
# dtype of the values ahead of their product.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 1.5e-3, torch.bfloat16: 1e-2}
_LSE_TOLERANCE = 1e-4
_MARGIN = 1e-3
_KERNELS = ("tiles", "clusters", "sparse-linear", "moments")


@dataclass(frozen=True)
class Case:
    """Arguments of one call of `tile_attention`."""

    q: Tensor
    k: Tensor
    v: Tensor
    tile_map: TileMap
    scale: float | None
    mask: Tensor | None
    marking: Marking | None
    centroids: TileCentroids | None
    exact: bool

    def run(self, backend: str, marking: Marking | None = None) -> TileAttentionOutput:
        """The call, on one backend."""
        return tile_attention(
            self.q,
            self.k,
            self.v,
            self.tile_map,
            scale=self.scale,
            mask=self.mask,
            return_lse=True,
            marking=marking or self.marking,
            centroids=self.centroids,
            backend=backend,
        )

    def __str__(self) -> str:
        tilings = [
            f"{t.length} in {t.tiles} of {t.tile or 'any size'}"
            for t in (self.tile_map.q_tiling, self.tile_map.k_tiling)
        ]
        mask = None if self.mask is None else tuple(self.mask.shape)
        return (
            f"q {tuple(self.q.shape)} {self.q.dtype} strides {self.q.stride()}, k "
            f"{tuple(self.k.shape)}, tiles {' x '.join(tilings)}, map "
            f"{tuple(self.tile_map.indices.shape)}, scale {self.scale}, mask {mask}, {self.marking}"
            f"{', centroids' if self.centroids else ''}"
        )


def draw(seed: int, device: str = "cpu", dtypes: tuple[torch.dtype, ...] | None = None) -> Case:
    """A random case; the same seed gives the same case."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    if dtypes is None:
        dtypes = (torch.float32, torch.float32, torch.float16)
    exact = rng.random() < 0.5
    batch, kv_heads, group = rng.choice((1, 2)), rng.choice((1, 1, 2)), rng.choice((1, 1, 2, 3))
    heads = kv_heads * group
    q_len, k_len = rng.randint(1, 90), rng.randint(1, 90)
    dim = rng.choice((16, 24, 32, 40, 64))
    dtype = rng.choice(dtypes)

    def values(n: int, length: int, integers: bool) -> Tensor:
        shape = (batch, n, length, dim)
        if integers:
            x = torch.randint(-2, 3, shape, generator=generator).float()
        else:
            x = torch.randn(shape, generator=generator) * rng.choice((0.5, 1.0, 2.0))
        x = x.to(dtype)
        if rng.random() < 0.5:
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
        return x.to(device)

    q_tiling = _draw_tiling(rng, generator, q_len, batch, heads, (8, 16, 20, 32, 72), device)
    k_tiling = _draw_tiling(rng, generator, k_len, batch, heads, (8, 16, 24, 32, 40, 80), device)
    shared = (rng.choice((1, batch)), rng.choice((1, heads)))
    keep = torch.rand((*shared, q_tiling.tiles, k_tiling.tiles), generator=generator)
    tile_map = TileMap.from_mask(
        (keep < rng.choice((0.0, 0.1, 0.3, 0.6, 1.0))).to(device), q_tiling, k_tiling
    )
    if rng.random() < 0.3:
        tile_map = tile_map.reversed()
    mask = None
    if rng.random() < 0.4:
        shape = (batch, k_len)
        if rng.random() < 0.6:
            sizes = (rng.choice((1, batch)), rng.choice((1, heads)), rng.choice((1, q_len)))
            shape = (*sizes, k_len)  # type: ignore[assignment]
        mask = (torch.rand(shape, generator=generator) < rng.choice((0.1, 0.5, 0.9))).to(device)
    marking = None
    if rng.random() < 0.6:
        threshold: float | Tensor = rng.choice((-0.01, -0.5, -3.0, -10.0, -torch.inf))
        if rng.random() < 0.3:
            threshold = -torch.rand(heads, generator=generator) * 5 - 0.01
        marking = Marking(threshold, rng.random() < 0.5, rng.random() < 0.3)
    # Drawn last, so that a case without them is what it was before there were any.
    q, k = values(heads, q_len, exact), values(kv_heads, k_len, exact)
    v = values(kv_heads, k_len, False)
    scale, centroids = rng.choice((None, None, 0.3)), None
    if marking is None and rng.random() < 0.5:
        means = (values(kv_heads, k_tiling.tiles, False), values(kv_heads, k_tiling.tiles, False))
        bias = None
        if rng.random() < 0.5:
            bias = torch.randn((*shared, q_tiling.tiles, k_tiling.tiles), generator=generator)
            bias = bias.to(device)
        centroids = TileCentroids(means[0], means[1], bias)
    return Case(q, k, v, tile_map, scale, mask, marking, centroids, exact)


def _draw_tiling(
    rng: random.Random,
    generator: torch.Generator,
    length: int,
    batch: int,
    heads: int,
    sizes: tuple[int, ...],
    device: str,
) -> Tiling:
    if rng.random() < 0.7:
        return Tiling.fixed(length, rng.choice(sizes))
    shape = (rng.choice((1, batch)), rng.choice((1, heads)))
    inner = torch.randint(0, length + 1, (*shape, rng.randint(0, 6)), generator=generator)
    ends = torch.full((*shape, 1), length)
    offsets = torch.cat([torch.zeros_like(ends), inner.sort(-1).values, ends], -1)
    return Tiling.variable(offsets.int().to(device), length)


def check(case: Case, backends: tuple[str, ...]) -> list[str]:
    """What is wrong with the case, one sentence each; backends that cannot run it are left out."""
    expected = case.run("naive")
    call = check_call(
        case.q,
        case.k,
        case.v,
        case.tile_map,
        case.scale,
        case.mask,
        True,
        case.marking,
        case.centroids,
    )
    wrong = []
    for backend in attention.BACKENDS:
        if backend.name not in backends or backend.why_not(call) is not None:
            continue
        with poisoned():
            got = case.run(backend.name)
        wrong += [f"{backend.name}: {text}" for text in _differences(case, got, expected)]
    return wrong


def _differences(
    case: Case, got: TileAttentionOutput, expected: TileAttentionOutput
) -> Iterator[str]:
    sure = True
    if case.marking is not None and expected.keep is not None and got.keep is not None:
        most, least = expected.keep, expected.keep
        if not case.exact:
            most, least = (_keep_at(case, shift) for shift in (-_MARGIN, _MARGIN))
        sure = torch.equal(most, least)
        if bool((got.keep & ~most).any() | (least & ~got.keep).any()):
            yield f"marks differ at {(got.keep != expected.keep).nonzero().tolist()[:4]}"
    if case.marking is not None and case.marking.skip_now and not sure:
        return
    if got.output.stride() != torch.empty_like(case.q).stride():
        yield f"the output has the strides {got.output.stride()}"
    error = relative_rmse(got.output, expected.output)
    if not error <= TOLERANCE[case.q.dtype]:
        yield f"the output is off by {error:.2e} (relative RMSE)"
    assert got.lse is not None and expected.lse is not None
    gap = (got.lse - expected.lse).nan_to_num(nan=torch.inf)
    gap[got.lse == expected.lse] = 0.0
    if not float(gap.abs().max()) <= _LSE_TOLERANCE * (1 + float(_finite_max(expected.lse))):
        yield f"the lse is off by {float(gap.abs().max()):.2e}"


def _keep_at(case: Case, shift: float) -> Tensor:
    assert case.marking is not None
    threshold = case.marking.threshold + shift
    if isinstance(threshold, Tensor):
        threshold = threshold.clamp(max=-1e-6)
    keep = case.run("naive", replace(case.marking, threshold=threshold)).keep
    assert keep is not None
    return keep


def _finite_max(x: Tensor) -> Tensor:
    return x.masked_fill(x == -torch.inf, 0.0).abs().max()


def relative_rmse(got: Tensor, expected: Tensor) -> float:
    """Root of the mean squared error over that of the expected values; 0 when both are 0."""
    error = (got.double() - expected.double()).square().mean().sqrt()
    size = expected.double().square().mean().sqrt()
    return float(error / size) if float(size) else float(error)


def check_clusters(seed: int, backend: str, device: str = "cpu") -> list[str]:
    """Cluster, sort, permute and pool random tokens; what is wrong, one sentence each."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    shape = (rng.choice((1, 2)), rng.choice((1, 3)), rng.randint(1, 150), rng.choice((16, 24, 64)))
    clusters = rng.randint(1, min(40, shape[2]))
    # Small integers: distances to centroids that are tokens are exact, and ties are real ties.
    x = torch.randint(-2, 3, shape, generator=generator).float()
    if rng.random() < 0.5:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    x = x.to(device)
    wrong = []
    start = x[:, :, :clusters]
    with poisoned():
        nearest = kmeans(x, clusters, 0, start, backend=backend)
        found = kmeans(x, clusters, 3, start, backend=backend)
        order, offsets = order_by_label(found.labels, clusters)
        sorted_x = permute(x, order, backend=backend)
        back = inverse_permute(sorted_x, order, torch.empty_like(x), backend=backend)
        means = pool_tiles(sorted_x, Tiling.variable(offsets, shape[2]), backend=backend)
    if not torch.equal(nearest.labels, kmeans(x, clusters, 0, start, backend="naive").labels):
        wrong.append("labels are not those of the nearest centroids")
    if not torch.equal(found.sizes, offsets.diff(dim=-1)):
        wrong.append("sizes are not the counts of the labels")
    if not torch.equal(sorted_x, x.gather(2, order.long()[..., None].expand_as(x))):
        wrong.append("permute is not a gather")
    if not torch.equal(back, x):
        wrong.append("inverse_permute does not undo permute")
    held = (found.sizes > 0)[..., None]
    if not torch.allclose(means, torch.where(held, found.centroids, 0.0), atol=1e-5):
        wrong.append("centroids are not the means of their tokens")
    return wrong


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill what `torch.empty` and `torch.empty_like` give with NaN, so that nothing read before it
    is written goes unseen."""
    empty, empty_like = torch.empty, torch.empty_like

    def fill(tensor: Tensor) -> Tensor:
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor.fill_(99)

    def poisoned_empty(*args: Any, **kwargs: Any) -> Tensor:
        return fill(empty(*args, **kwargs))

    def poisoned_empty_like(*args: Any, **kwargs: Any) -> Tensor:
        return fill(empty_like(*args, **kwargs))

    torch.empty, torch.empty_like = poisoned_empty, poisoned_empty_like
    try:
        yield
    finally:
        torch.empty, torch.empty_like = empty, empty_like


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 1 when a case failed."""
    parser = argparse.ArgumentParser(prog="python -m ditaccel.kernels.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--backend", choices=("torch", "triton"), default="torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kernels", nargs="+", choices=_KERNELS, default=_KERNELS)
    parser.add_argument("--stop-after", type=int, default=10, help="failures")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no case after")
    options = parser.parse_args(arguments)
    dtypes = None
    if options.device != "cpu":
        dtypes = (torch.float32, torch.float16, torch.bfloat16)
    began, ran, failures = time.perf_counter(), 0, 0
    for seed in range(options.seed, options.seed + options.cases):
        if time.perf_counter() - began > options.seconds:
            break
        ran += 1
        wrong = []
        if "tiles" in options.kernels:
            case = draw(seed, options.device, dtypes)
            wrong += [f"{text}\n  {case}" for text in check(case, (options.backend,))]
        if "clusters" in options.kernels:
            wrong += check_clusters(seed, options.backend, options.device)
        if "sparse-linear" in options.kernels:
            wrong += check_sparse_linear(seed, options.backend, options.device, guard=poisoned())
        if "moments" in options.kernels:
            wrong += check_moments(seed, options.backend, options.device, guard=poisoned())
        if wrong:
            failures += 1
            print(f"seed {seed}: {'; '.join(wrong)}", file=sys.stderr)
            if failures >= options.stop_after:
                break
    spent = time.perf_counter() - began
    print(f"{options.backend} on {options.device}: {ran} cases, {failures} failed, {spent:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
