"""Bring the tokens of one cluster together, and back: the public functions and their backends."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import triton_launch
from ..dispatch import Backend, choose
from . import torch_backend
from .call import PermuteCall, check_call

__all__ = ["inverse_permute", "order_by_label", "permute"]

# Plain torch is the definition too: there is nothing simpler to hold it against.
BACKENDS: tuple[Backend[PermuteCall], ...] = (
    Backend(
        "triton",
        lambda call: triton_launch.why_not(call.x),
        lambda call: triton_launch.permute(call.x, call.order, call.out, call.inverse),
        by_name_only=lambda call: call.x.device.type == "cpu",
    ),
    Backend("torch", torch_backend.why_not, torch_backend.run),
)


def order_by_label(labels: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Sort tokens by their cluster; tokens of one cluster keep their order.

    Args:
        labels: int32 `(B, H, L)`, from 0 to `clusters - 1`.
        clusters: C, empty ones included.

    Returns:
        `(order, offsets)`: int32 `(B, H, L)`, the token that comes to each place, and int32
        `(B, H, C + 1)`, prefix sums of the sizes, as `Tiling.variable` takes them.
    """
    if labels.dtype != torch.int32 or labels.ndim != 3:
        raise TypeError(f"labels must be int32 (B, H, L), got {labels.dtype} {tuple(labels.shape)}")
    if clusters < 1:
        raise ValueError(f"clusters must be at least 1, got {clusters}")
    order = labels.argsort(dim=-1, stable=True).int()
    ones = torch.ones_like(labels)
    offsets = torch.zeros(
        (*labels.shape[:2], clusters + 1), dtype=torch.int32, device=labels.device
    )
    offsets.scatter_add_(-1, labels.long() + 1, ones)
    return order, offsets.cumsum(-1, dtype=torch.int32)


def permute(
    x: Tensor, order: Tensor, out: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Bring token `order[i]` to place `i`.

    Args:
        x: `(B, H, L, D)`, any strides.
        order: int32 `(B|1, H|1, L)`, a permutation of the tokens (not checked).
        out: where to write, any strides; a new contiguous tensor by default.
        backend: `triton` or `torch`; by default the first that can run the call.

    Returns:
        `(B, H, L, D)`.

    Raises:
        TypeError: order is not of integers.
        ValueError: shapes or devices that do not fit.
    """
    call = check_call(x, order, out, inverse=False)
    return choose("permute", BACKENDS, call, backend).run(call)


def inverse_permute(
    x: Tensor, order: Tensor, out: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Bring token `i` back to place `order[i]`: undoes `permute`, and takes what it takes."""
    call = check_call(x, order, out, inverse=True)
    return choose("inverse_permute", BACKENDS, call, backend).run(call)
