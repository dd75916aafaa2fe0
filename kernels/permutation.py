"""Bring the tokens of one cluster together, and back: the public functions and their backends."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .dispatch import Backend, anywhere, choose, why_not_triton
from .triton_common import Launch, block_of

__all__ = ["inverse_permute", "order_by_label", "permute"]


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
    call = _check_call(x, order, out, inverse=False)
    return choose("permute", BACKENDS, call, backend).run(call)


def inverse_permute(
    x: Tensor, order: Tensor, out: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Bring token `i` back to place `order[i]`: undoes `permute`, and takes what it takes."""
    call = _check_call(x, order, out, inverse=True)
    return choose("inverse_permute", BACKENDS, call, backend).run(call)


@dataclass(frozen=True, eq=False)
class PermuteCall:
    """A checked call: `out[i] = x[order[i]]`, or `out[order[i]] = x[i]` when `inverse`."""

    x: Tensor
    order: Tensor
    out: Tensor
    inverse: bool


def _check_call(x: Tensor, order: Tensor, out: Tensor | None, inverse: bool) -> PermuteCall:
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


def _run_triton(call: PermuteCall) -> Tensor:
    from .triton_tokens import permute_kernel

    x, order, out = call.x, call.order, call.out
    batch, heads, length, dim = x.shape
    launch = permute_launch(dim, call.inverse)
    permute_kernel[(-(-length // launch.flags["BLOCK_L"]), batch * heads)](
        x,
        order,
        out,
        *x.stride(),
        *order.stride(),
        *out.stride(),
        heads,
        length,
        **launch.options,
    )
    return out


def permute_launch(dim: int, inverse: bool) -> Launch:
    """Flags and options of the kernel."""
    return Launch({"D": dim, "BLOCK_D": block_of(dim), "BLOCK_L": 32, "INVERSE": inverse}, 4)


def _run_torch(call: PermuteCall) -> Tensor:
    """Copy each token to its place."""
    if call.x.device.type != "cpu":
        place = call.order.long()[..., None].expand(call.x.shape)
        if call.inverse:
            return call.out.scatter_(2, place, call.x)
        return call.out.copy_(call.x.gather(2, place))
    for b in range(call.x.shape[0]):
        for h in range(call.x.shape[1]):
            x, order, out = call.x[b, h], call.order[b, h], call.out[b, h]
            if call.inverse:
                out.index_copy_(0, order.long(), x)
            else:
                out.copy_(x.index_select(0, order))
    return call.out


# Plain torch is the definition too: there is nothing simpler to compare it with.
BACKENDS: tuple[Backend[PermuteCall], ...] = (
    Backend("triton", lambda call: why_not_triton(call.x), _run_triton),
    Backend("torch", anywhere, _run_torch),
)
