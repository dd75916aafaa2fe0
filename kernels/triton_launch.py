"""Launches the kernels of `triton_kernels`; nothing here waits for the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .dispatch import interpreted, why_not_triton

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class Launch:
    """Compile-time flags of a kernel, and its options."""

    flags: dict[str, Any]
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, Any]:
        """What a launch is handed."""
        return {**self.flags, "num_warps": self.warps, "num_stages": self.stages}


def why_not(x: Tensor) -> str | None:
    """Why the kernels cannot run on x `(B, H, L, D)`, None if they can."""
    reason = why_not_triton(x.device)
    if reason is not None:
        return reason
    if x.dtype not in DTYPES:
        return f"it takes {', '.join(str(d)[6:] for d in DTYPES)}, not {x.dtype}"
    if interpreted() and x.dtype == torch.bfloat16:
        return "Triton's interpreter computes wrongly in bfloat16; use float16 or float32 there"
    if x.shape[3] > MAX_HEAD_DIM:
        return f"the head dimension is at most {MAX_HEAD_DIM}, got {x.shape[3]}"
    if x.requires_grad and torch.is_grad_enabled():
        return "it has no backward; call it under torch.no_grad()"
    return None


def assign(x: Tensor, centroids: Tensor) -> Tensor:
    """Nearest centroid of each token, int32 `(B, H, L)`; centroids float32, contiguous."""
    from .triton_kernels import assign_kernel

    batch, heads, length, dim = x.shape
    clusters = centroids.shape[2]
    labels = torch.empty((batch, heads, length), dtype=torch.int32, device=x.device)
    block_l = 64
    assign_kernel[(-(-length // block_l), batch * heads)](
        x,
        centroids,
        centroids.square().sum(-1),
        labels,
        *x.stride(),
        heads,
        length,
        clusters,
        D=dim,
        BLOCK_D=block_of(dim),
        BLOCK_L=block_l,
        BLOCK_C=32,
        num_warps=4,
        num_stages=2,
    )
    return labels


def segment_means(
    x: Tensor, offsets: Tensor, order: Tensor | None = None, empty: Tensor | None = None
) -> Tensor:
    """Mean of the tokens of each segment, float32 `(B, H, S, D)`.

    Args:
        x: `(B, H, L, D)`, any strides.
        offsets: int32 `(B|1, H|1, S + 1)`, contiguous.
        order: int32 `(B, H, L)`, contiguous: the token at each place; None for the places
            themselves.
        empty: float32 `(B, H, S, D)`, contiguous: what segments without tokens get; 0 by default.
    """
    from .triton_kernels import segment_mean_kernel

    batch, heads, length, dim = x.shape
    segments = offsets.shape[2] - 1
    out = torch.empty((batch, heads, segments, dim), dtype=torch.float32, device=x.device)
    segment_mean_kernel[(segments, batch * heads)](
        x,
        order,
        offsets,
        empty,
        out,
        *x.stride(),
        *shared_strides(offsets, 2),
        heads,
        length,
        segments,
        D=dim,
        BLOCK_D=block_of(dim),
        BLOCK_L=32,
        ORDERED=order is not None,
        KEEP_EMPTY=empty is not None,
        num_warps=4,
    )
    return out


def permute(x: Tensor, order: Tensor, out: Tensor, inverse: bool) -> Tensor:
    """Copy tokens to their places; order `(B, H, L)` of any strides."""
    from .triton_kernels import permute_kernel

    batch, heads, length, dim = x.shape
    block_l = 32
    permute_kernel[(-(-length // block_l), batch * heads)](
        x,
        order,
        out,
        *x.stride(),
        *order.stride(),
        *out.stride(),
        heads,
        length,
        D=dim,
        BLOCK_D=block_of(dim),
        BLOCK_L=block_l,
        INVERSE=inverse,
        num_warps=4,
    )
    return out


def merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two parts, output `(B, H, L, D)` of any strides and log-sum-exp `(B, H, L)` each, under one
    softmax; see `merge_attention`."""
    from .triton_kernels import merge_kernel

    (a, a_lse), (b, b_lse) = first, second
    batch, heads, length, dim = a.shape
    out = torch.empty_like(a)
    lse = torch.empty((batch, heads, length), dtype=torch.float32, device=a.device)
    block_l = 32
    merge_kernel[(-(-length // block_l), batch * heads)](
        a,
        b,
        a_lse.float().contiguous(),
        b_lse.float().contiguous(),
        out,
        lse,
        *a.stride(),
        *b.stride(),
        *out.stride(),
        heads,
        length,
        D=dim,
        BLOCK_D=block_of(dim),
        BLOCK_L=block_l,
        num_warps=4,
    )
    return out, lse


def block_of(size: int) -> int:
    """The power of two that holds a size, at least the 16 that a matrix product needs."""
    return max(16, 1 << (size - 1).bit_length())


def shared_strides(tensor: Tensor | None, leading: int) -> list[int]:
    """Strides of the leading dimensions, 0 where a dimension (or all) is shared."""
    if tensor is None:
        return [0] * leading
    sizes, strides = tensor.shape[:leading], tensor.stride()[:leading]
    return [0 if n == 1 else stride for n, stride in zip(sizes, strides, strict=True)]
