"""Sums over the tokens of each cluster or tile, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


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
