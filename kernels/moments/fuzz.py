"""Random calls of attention to moments, compared with the definition; run by `..fuzz`."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from ..attention import merge_attention
from ..fuzz import poisoned
from ..tiling import Tiling
from . import moment_attention, moment_attention_backends, tile_moments

INTERPRETED = (12, 200)
# Relative RMSE against float64 on the same inputs. Half precision rounds mean keys and weights
# ahead of their products, and the outputs; Triton holds covariances in bfloat16 then, and with
# inputs as random as here they make up most of the output.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 1e-2, torch.bfloat16: 2e-2}
_LSE_TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}


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
    batch, kv_heads, group = rng.choice((1, 2)), rng.choice((1, 1, 2)), rng.choice((1, 1, 2, 3))
    if small:
        batch, kv_heads, group = rng.choice(((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)))
    heads = kv_heads * group
    q_len, k_len = rng.randint(1, 90), rng.randint(1, 120 if small else 400)
    dim = rng.choice((8, 24, 32, 48, 72))
    dtype = dtype or rng.choice((torch.float32, torch.float16))

    def values(n: int, length: int, mean: float) -> Tensor:
        x = torch.randn((batch, n, length, dim), generator=generator) * rng.choice((0.5, 1.0))
        if rng.random() < 0.5:
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
        return (x + mean).to(device, dtype)

    q = values(heads, q_len, 0.0)
    k = values(kv_heads, k_len, rng.choice((0.0, 1.0)))
    v = values(kv_heads, k_len, rng.choice((0.0, 3.0)))
    tilings = (
        Tiling.fixed(q_len, rng.choice((16, 20, 32, 72))),
        Tiling.fixed(k_len, rng.choice((16, 40, 70) if small else (3, 16, 40, 70))),
    )
    shape = (rng.choice((1, batch)), rng.choice((1, heads)), *(t.tiles for t in tilings))
    marginal = torch.rand(shape, generator=generator) < rng.choice((0.0, 0.1, 0.5, 1.0))
    mask = None
    if rng.random() < 0.4:
        mask = (torch.rand((batch, k_len), generator=generator) < rng.choice((0.1, 0.7))).to(device)
    return {
        "q": q,
        "k": k,
        "v": v,
        "marginal": marginal.to(device),
        "q_tiling": tilings[0],
        "k_tiling": tilings[1],
        "mask": mask,
        "scale": rng.choice((None, 0.3)),
    }


def check(
    seed: int, backend: str, device: str = "cpu", dtype: torch.dtype | None = None
) -> list[str]:
    """Run a random call, and merge its output with another; what is wrong, one sentence each.

    Args:
        seed: of the call.
        backend: compared with the definition; nothing is wrong with one that cannot run the call.
        device: where the tensors are.
        dtype: of the tensors; drawn by default.
    """
    arguments = draw(seed, device, dtype, small=backend == "triton" and device == "cpu")
    q, k, v, tiling, mask = (arguments[name] for name in ("q", "k", "v", "k_tiling", "mask"))
    if moment_attention_backends(**arguments)[backend] is not None:
        return []
    output, lse = (x.to(device) for x in moment_attention(**arguments, backend="naive"))
    other = torch.randn(q.shape, generator=torch.Generator().manual_seed(seed)).to(q)
    other_lse = other[..., 0].float()
    with poisoned():
        found = tile_moments(k, v, tiling, mask, backend=backend)
        # Given or not, moments are the same.
        given = found if seed % 2 else None
        got = moment_attention(**arguments, moments=given, backend=backend)
        merged = merge_attention((other, other_lse), got, backend=backend)
    wrong = []
    wanted = tile_moments(k.double(), v.double(), tiling, mask, backend="torch")
    for name, ours, theirs in zip(found._fields, found, wanted, strict=True):
        gap = float((ours - theirs).abs().max() / (1.0 + theirs.abs().max()))
        if ours.shape != theirs.shape or not gap < 1e-5:
            wrong.append(f"{name} is off by {gap:.2e}")
    error = _error(got[0], output)
    if got[0].dtype != q.dtype or not error <= TOLERANCE[q.dtype]:
        wrong.append(f"the output is off by {error:.2e} (relative RMSE)")
    if not torch.equal(got[1].isinf(), lse.isinf()):
        wrong.append("other rows than those without marginal tiles have no lse")
    gap = float((got[1] - lse).masked_fill(lse.isinf(), 0.0).abs().max())
    if got[1].dtype != torch.float32 or not gap <= _LSE_TOLERANCE[q.dtype]:
        wrong.append(f"the lse is off by {gap:.2e}")
    both = merge_attention((other.double(), other_lse), (got[0].double(), got[1]), backend="torch")
    if not _error(merged[0], both[0]) <= TOLERANCE[q.dtype]:
        wrong.append(f"merged, the output is off by {_error(merged[0], both[0]):.2e}")
    if not float((merged[1] - both[1]).abs().max()) <= 1e-5:
        wrong.append("merged, the lse is off")
    return wrong


def _error(got: Tensor, expected: Tensor) -> float:
    """Relative RMSE."""
    size = float(expected.double().square().mean().sqrt())
    return float((got.double() - expected.double()).square().mean().sqrt()) / (size or 1.0)
