"""What a call of `permute` or `inverse_permute` is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PermuteCall:
    """A checked call: `out[i] = x[order[i]]`, or `out[order[i]] = x[i]` when `inverse`."""

    x: Tensor
    order: Tensor
    out: Tensor
    inverse: bool


def check_call(x: Tensor, order: Tensor, out: Tensor | None, inverse: bool) -> PermuteCall:
    """Turn the arguments of `permute` into a call, or say what is wrong with them."""
    if x.ndim != 4:
        raise ValueError(f"x must have the shape (B, H, L, D), got {tuple(x.shape)}")
    if order.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"order must be int32 or int64, got {order.dtype}")
    shared = order.ndim == 3 and all(
        own in (1, of) for own, of in zip(order.shape[:2], x.shape[:2], strict=True)
    )
    if not shared or order.shape[2] != x.shape[2]:
        raise ValueError(
            f"order must have the shape {tuple(x.shape[:3])}, or 1 where it is shared, got "
            f"{tuple(order.shape)}"
        )
    if order.device != x.device:
        raise ValueError(f"order is on {order.device}, but x on {x.device}")
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    elif out.shape != x.shape or out.dtype != x.dtype or out.device != x.device:
        raise ValueError(
            f"out must be like x, {tuple(x.shape)} {x.dtype} on {x.device}, got "
            f"{tuple(out.shape)} {out.dtype} on {out.device}"
        )
    elif out.data_ptr() == x.data_ptr():
        raise ValueError("out must not be x itself: tokens would be read after they are written")
    return PermuteCall(x, order.expand(x.shape[:3]), out, inverse)
