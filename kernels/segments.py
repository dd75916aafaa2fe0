"""Sums and means over the tokens of each cluster or tile: in plain torch, and by Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from .triton_common import Launch, block_of, shared_strides


def segment_sums(x: Tensor, labels: Tensor, segments: int) -> Tensor:
    """Add up the tokens of each segment in float32.

    Args:
        x: `(B, H, L, D)`.
        labels: int `(B|1, H|1, L)`, the segment of each token.
        segments: their number S.

    Returns:
        float32 `(B, H, S, D)`; 0 for a segment without tokens.
    """
    batch, heads, _, dim = x.shape
    first = torch.arange(batch * heads, device=x.device).view(batch, heads, 1) * segments
    sums = torch.zeros((batch * heads * segments, dim), dtype=torch.float32, device=x.device)
    sums.index_add_(0, (labels + first).flatten(), x.float().reshape(-1, dim))
    return sums.view(batch, heads, segments, dim)


def segment_means_by_triton(
    x: Tensor, offsets: Tensor, order: Tensor | None = None, empty: Tensor | None = None
) -> Tensor:
    """Mean of the tokens of each segment; nothing waits for the device.

    Args:
        x: `(B, H, L, D)`, any strides.
        offsets: int32 `(B|1, H|1, S + 1)`, contiguous.
        order: int32 `(B, H, L)`, contiguous: the token at each place; None for the places
            themselves.
        empty: float32 `(B, H, S, D)`, contiguous: what segments without tokens get; 0 by default.

    Returns:
        float32 `(B, H, S, D)`.
    """
    from .triton_tokens import segment_mean_kernel

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
        **segment_means_launch(dim, order is not None, empty is not None).options,
    )
    return out


def segment_means_launch(dim: int, ordered: bool, keep_empty: bool) -> Launch:
    """Flags and options of the kernel of segment means."""
    flags = {
        "D": dim,
        "BLOCK_D": block_of(dim),
        "BLOCK_L": 32,
        "ORDERED": ordered,
        "KEEP_EMPTY": keep_empty,
    }
    return Launch(flags, 4)
