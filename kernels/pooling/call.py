"""What a call of `pool_tiles` is made of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..tiling import Tiling


@dataclass(frozen=True, eq=False)
class PoolCall:
    """A checked call."""

    x: Tensor
    tiling: Tiling


def check_call(x: Tensor, tiling: Tiling) -> PoolCall:
    """Turn the arguments of `pool_tiles` into a call, or say what is wrong with them."""
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"x must have the shape (B, H, L, D), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating point tensor, got {x.dtype}")
    if tiling.length != x.shape[2]:
        raise ValueError(f"tiling is for {tiling.length} tokens, but x has {x.shape[2]}")
    if tiling.offsets is not None:
        if tiling.offsets.device != x.device:
            raise ValueError(f"tiling is on {tiling.offsets.device}, but x on {x.device}")
        of_tiling = tuple(tiling.offsets.shape[:2])
        if any(own not in (1, of) for own, of in zip(of_tiling, x.shape[:2], strict=True)):
            raise ValueError(
                f"tiling is for {of_tiling} batch items and heads, which must be those of x "
                f"{tuple(x.shape[:2])} or 1 (shared)"
            )
    return PoolCall(x, tiling)
