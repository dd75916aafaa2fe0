"""Put attention over disjoint sets of keys together under one softmax."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from ..dispatch import Backend, anywhere, choose, why_not_triton
from ..triton_common import Launch, block_of

Parts: TypeAlias = tuple[tuple[Tensor, Tensor], ...]


def merge_attention(
    *parts: tuple[Tensor, Tensor], backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Merge parts as if one softmax had run over all of their keys.

    With `w_p = exp(lse_p)`, the output is `sum_p w_p o_p / sum_p w_p`. A part may stand for keys
    that it only approximates (centroids of skipped clusters), as long as its lse says how much they
    weigh.

    Args:
        *parts: `(output, lse)` each, output `(B, H, Lq, D)` and lse `(B, H, Lq)` in natural log;
            a row with lse -inf takes no part.
        backend: `triton` (two parts, no gradient) or `torch`; by default the first that can run.

    Returns:
        `(output, lse)` in the dtype of the first output and float32; 0 and -inf for a row that no
        part has keys for.

    Raises:
        ValueError: no parts, shapes that differ, or a backend that cannot run the call.
    """
    if not parts:
        raise ValueError("merge_attention needs at least one part (output, lse)")
    shape = parts[0][0].shape
    for at, (output, lse) in enumerate(parts):
        if output.shape != shape or lse.shape != shape[:-1]:
            raise ValueError(
                f"part {at} has an output {tuple(output.shape)} and an lse {tuple(lse.shape)}, but "
                f"the first part calls for {tuple(shape)} and {tuple(shape[:-1])}"
            )
    return choose("merge_attention", _BACKENDS, parts, backend).run(parts)


def _why_not_triton(parts: Parts) -> str | None:
    if len(parts) != 2:
        return f"it merges two parts, got {len(parts)}"
    (a, a_lse), (b, b_lse) = parts
    return why_not_triton(a, b, others=(a_lse, b_lse))


def merge_launch(dim: int) -> Launch:
    """Flags and options of the kernel."""
    return Launch({"D": dim, "BLOCK_D": block_of(dim), "BLOCK_L": 32}, 4)


def _run_triton(parts: Parts) -> tuple[Tensor, Tensor]:
    from .triton_merge_kernel import merge_kernel

    (a, a_lse), (b, b_lse) = parts
    batch, heads, length, dim = a.shape
    out = torch.empty_like(a)
    lse = torch.empty((batch, heads, length), dtype=torch.float32, device=a.device)
    launch = merge_launch(dim)
    merge_kernel[(-(-length // launch.flags["BLOCK_L"]), batch * heads)](
        *(a, b, a_lse.float().contiguous(), b_lse.float().contiguous(), out, lse),
        *a.stride(),
        *b.stride(),
        *out.stride(),
        heads,
        length,
        **launch.options,
    )
    return out, lse


def _run_torch(parts: Parts) -> tuple[Tensor, Tensor]:
    shape = parts[0][0].shape
    lses = torch.stack([lse.float() for _, lse in parts])
    top = lses.amax(0)
    weights = torch.exp(lses - top.masked_fill(top == -torch.inf, 0.0))
    total = weights.sum(0)
    merged = torch.zeros(shape, dtype=torch.float32, device=parts[0][0].device)
    for weight, (output, _) in zip(weights, parts, strict=True):
        # An output that takes no part may hold anything, NaN too.
        merged += torch.where(weight[..., None] > 0, output.float() * weight[..., None], 0.0)
    merged /= torch.where(total > 0, total, 1.0)[..., None]
    return merged.to(parts[0][0].dtype), top + total.log()


_BACKENDS: tuple[Backend[Parts], ...] = (
    Backend("triton", _why_not_triton, _run_triton),
    Backend("torch", anywhere, _run_torch),
)
