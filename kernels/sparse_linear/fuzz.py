"""Random calls of sparse-linear attention, compared with the definition; run by `..fuzz`."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from ..fuzz import poisoned
from ..tile_map import TileMap
from ..tiling import Tiling
from . import sparse_linear_attention, sparse_linear_backends
from .features import FEATURE_MAPS, feature_map

INTERPRETED = (6, 100)
# Relative RMSE against float64 on the same inputs. Half precision rounds weights and gradients of
# scores ahead of their products.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
_NAMES = ("q", "k", "v", "q_features", "k_features")


def draw(
    seed: int, device: str = "cpu", dtype: torch.dtype | None = None, small: bool = False
) -> dict[str, Any]:
    """Arguments of a random call; the same seed gives the same ones.

    Args:
        seed: of the call.
        device: where the tensors are.
        dtype: of the tensors; drawn by default.
        small: few and short heads, for the interpreter.
    """
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    sizes: tuple[tuple[int, ...], tuple[int, ...]]
    if small:
        batch, kv_heads, group = rng.choice(((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)))
        q_len, k_len, dim = rng.randint(1, 40), rng.randint(1, 40), rng.choice((8, 16, 24))
        sizes = ((16, 20), (16, 24))
    else:
        batch, kv_heads, group = rng.choice((1, 2)), rng.choice((1, 2)), rng.choice((1, 1, 2, 3))
        q_len, k_len, dim = rng.randint(1, 70), rng.randint(1, 90), rng.choice((8, 16, 24, 40, 64))
        sizes = ((8, 16, 20, 32), (8, 16, 24, 32))
    heads = kv_heads * group
    dtype = dtype or rng.choice((torch.float32, torch.float16))

    def values(n: int, length: int) -> Tensor:
        x = torch.randn((batch, n, length, dim), generator=generator) * rng.choice((0.5, 1.0, 2.0))
        if rng.random() < 0.5:
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
        return x.to(device, dtype)

    q, k, v = values(heads, q_len), values(kv_heads, k_len), values(kv_heads, k_len)
    q_features, k_features = feature_map(rng.choice(tuple(FEATURE_MAPS)))(q, k)
    tilings = [
        Tiling.fixed(length, rng.choice(of))
        for length, of in zip((q_len, k_len), sizes, strict=True)
    ]
    shape = (rng.choice((1, batch)), rng.choice((1, heads)), tilings[0].tiles, tilings[1].tiles)
    draw = torch.rand(shape, generator=generator).to(device)
    critical, negligible = rng.choice(((0.0, 0.1), (0.2, 0.1), (0.3, 0.7), (0.9, 0.0), (0.5, 0.5)))
    marginal: Tensor = (draw >= critical) & (draw < 1 - negligible)
    mask = None
    if rng.random() < 0.3:
        mask = (torch.rand((batch, k_len), generator=generator) < 0.7).to(device)
    tile_map = TileMap.from_mask(draw < critical, *tilings)
    if rng.random() < 0.3:
        tile_map = tile_map.reversed()
    if rng.random() < 0.2:  # as in the public code: linear attention over all keys
        marginal = torch.ones_like(marginal)
    return {
        "q": q,
        "k": k,
        "v": v,
        "q_features": q_features,
        "k_features": k_features,
        "critical": tile_map,
        "marginal": marginal,
        "mask": mask,
        "scale": rng.choice((None, None, 0.3)),
    }


def evaluate(
    arguments: dict[str, Any], backend: str, seed: int, dtype: torch.dtype | None = None
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Outputs and gradients by name, and the size that their errors are measured by.

    The size is the root mean square; that of a gradient is at least what it is without the
    gradient of the denominators. Where a row has one key the two cancel altogether, and what is
    left is the rounding of the outputs in their dtype.

    Args:
        arguments: of `sparse_linear_attention`.
        backend: that runs them.
        seed: of the gradients of the outputs.
        dtype: compute on inputs of this dtype.
    """
    inputs = [arguments[name].detach() for name in _NAMES]
    if dtype is not None:
        inputs = [x.to(dtype) for x in inputs]
    inputs = [x.requires_grad_() for x in inputs]
    other = {name: x for name, x in arguments.items() if name not in _NAMES}
    out = sparse_linear_attention(
        **dict(zip(_NAMES, inputs, strict=True)), **other, backend=backend
    )
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(x.shape, generator=generator).to(x) for x in out]
    # Rows without keys have no log-sum-exp, and so no gradient of it.
    empty = out.lse == -torch.inf
    weights[2] = weights[2].masked_fill(empty, 0.0)
    shift = (out.lse - out.lse.detach()).masked_fill(empty, 0.0)
    ratio = (out.mass + 1e-6) / (out.mass.detach() + 1e-6)
    undivided = (out.sparse * shift.exp()[..., None], out.linear * ratio[..., None])
    found = {name: x.detach() for name, x in zip(out._fields, out, strict=True)}
    sizes = {name: _size(x.masked_fill(x == -torch.inf, 0.0)) for name, x in found.items()}
    plain = torch.autograd.grad(undivided, inputs, weights[:2], retain_graph=True)
    gradients = torch.autograd.grad(out, inputs, weights)
    for name, whole, part in zip(_NAMES, gradients, plain, strict=True):
        found[f"d_{name}"] = whole
        sizes[f"d_{name}"] = max(_size(whole), _size(part))
    return found, sizes


def check(
    seed: int, backend: str, device: str = "cpu", dtype: torch.dtype | None = None
) -> list[str]:
    """Run a random call; what is wrong with its outputs and gradients, one sentence each.

    Args:
        seed: of the call.
        backend: compared with the definition; nothing is wrong with one that cannot run the call.
        device: where the tensors are.
        dtype: of the tensors; drawn by default.
    """
    arguments = draw(seed, device, dtype, small=backend == "triton" and device == "cpu")
    if sparse_linear_backends(**arguments)[backend] is not None:
        return []
    expected, sizes = evaluate(arguments, "naive", seed, torch.float64)
    with poisoned():
        got, _ = evaluate(arguments, backend, seed)
    wrong = []
    layout = torch.empty_like(arguments["q"]).stride()
    for name, value in got.items():
        wanted = expected[name]
        if name in ("sparse", "linear") and value.stride() != layout:
            wrong.append(f"{name} has the strides {value.stride()}")
        # Infinite alike: rows without keys, and gradients beyond float16 by a mass of nearly 0.
        alike = value.isinf() & (value == wanted.to(value.dtype))
        gap = (value.double() - wanted).masked_fill(alike, 0.0)
        error = _size(gap) / (sizes[name] or 1.0)
        if not error <= TOLERANCE[arguments["q"].dtype]:
            wrong.append(f"{name} is off by {error:.2e} (relative RMSE)")
    return wrong


def _size(x: Tensor) -> float:
    """Root mean square."""
    return float(x.double().square().mean().sqrt())
