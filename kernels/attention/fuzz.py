"""Random calls of tile attention, compared with the definition; run by `..fuzz`.

Marks must be equal bit by bit. Half of the cases make that well defined by inputs that are small
integers: every score is then exact in float32, in any order of summation, and the comparison itself
is float32 in all backends. The other half have normal inputs; there a backend's marks must lie
between those of the definition at a threshold a thousandth lower and a thousandth higher.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..fuzz import poisoned, relative_rmse
from ..tile_map import TileMap
from ..tiling import Tiling
from . import tile_attention, tile_attention_backends
from .call import Marking, Precision, TileAttentionOutput, TileCentroids

INTERPRETED = (40, 400)
# Relative RMSE against float64 on the same inputs. In half precision the weights are rounded to the
# dtype of the values ahead of their product.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 1.5e-3, torch.bfloat16: 1e-2}
_LSE_TOLERANCE = 1e-4
_MARGIN = 1e-3


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
    precision: Precision

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
            precision=self.precision,
            backend=backend,
        )

    def backends(self) -> dict[str, str | None]:
        """Why each backend cannot run the call."""
        return tile_attention_backends(
            self.q,
            self.k,
            self.v,
            self.tile_map,
            scale=self.scale,
            mask=self.mask,
            return_lse=True,
            marking=self.marking,
            centroids=self.centroids,
            precision=self.precision,
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
            f", {self.precision}"
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
    precision: Precision = "int8" if rng.random() < 0.3 else "model"
    exact &= precision == "model"  # scores of rounded queries and keys are not integers
    return Case(q, k, v, tile_map, scale, mask, marking, centroids, exact, precision)


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


def check(
    seed: int, backend: str, device: str = "cpu", dtype: torch.dtype | None = None
) -> list[str]:
    """Run a random call; what is wrong with it, one sentence each.

    Args:
        seed: of the call.
        backend: compared with the definition; nothing is wrong with one that cannot run the call.
        device: where the tensors are.
        dtype: of the tensors; drawn by default.
    """
    dtypes: tuple[torch.dtype, ...] | None = None
    if dtype is not None:
        dtypes = (dtype,)
    elif device != "cpu":
        dtypes = (torch.float32, torch.float16, torch.bfloat16)
    case = draw(seed, device, dtypes)
    if case.backends()[backend] is not None:
        return []
    expected = case.run("naive")
    with poisoned():
        got = case.run(backend)
    return [f"{text}\n  {case}" for text in _differences(case, got, expected)]


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
