"""XAttention: sums along antidiagonals tell what a tile weighs.

In each square of S x S scores only the antidiagonal is taken, all of them at once: S keys that
follow each other, joined along the channels, times S queries joined in the opposite order. The
softmax over the squares of a row, summed over a tile, is its weight, and each row of tiles keeps
the fewest that reach a share of the whole. Every vertical or slanted line crosses an antidiagonal.
Paper: arXiv 2503.16428, with code for videos. Ours: text is always kept (the authors' video path
does not protect it), padding takes no part (theirs enters the softmax with a score of 0), and the
first tile is kept only where it is chosen (a side effect in their code keeps it always:
`published:xattention` names it as a sink).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Example, method, require
from ..kernels import Tiling
from .engine.options import FixedTileOptions, Swept
from .engine.planner import LayerContext, State
from .engine.scores import grouped_product, smallest_set
from .engine.tile_planner import MaskPlanner

# Elements of the largest tensors that are held at once.
_CHUNK = 1 << 24
_PUBLISHED: dict[str, Any] = {
    "stride": 8,
    "k_tile": 128,
    "sink_tokens": ((0, 1),),
    "dense_steps": 0,
    "min_tokens": 0,
    "break_even": 1.0,
}


@method("xattention", paper="2503.16428")
@dataclass(frozen=True, kw_only=True)
class XAttentionConfig(FixedTileOptions):
    """Tiles whose antidiagonals weigh most, until a share of the row is reached.

    Options that all methods share are described in `TileOptions`.

    Args:
        threshold: share of a row's weight that is kept, in (0, 1]. Published: 0.9, and 0.95 for
            HunyuanVideo.
        stride: side S of the squares whose antidiagonals are taken; the estimate costs 1/S of all
            scores. Published: 8 or 16.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {**_PUBLISHED, "threshold": 0.9},
        "hunyuan_video": {**_PUBLISHED, "threshold": 0.95},
    }
    swept: ClassVar[Swept] = Swept("threshold", (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95))

    threshold: float = 0.9
    stride: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0.0 < self.threshold <= 1.0, f"threshold is {self.threshold}; give a share in (0, 1]"
        )
        require(self.stride >= 1, f"stride is {self.stride}; it must be 1 or more")
        for name in ("q_tile", "k_tile"):
            require(
                getattr(self, name) % self.stride == 0,
                f"{name} is {getattr(self, name)}; it must be a multiple of stride={self.stride}",
            )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        small = cls(q_tile=16, k_tile=16, stride=4, min_tokens=0, dense_steps=0, break_even=1.0)
        return (Example(replace(small, threshold=1.0), replace(small, threshold=0.3)),)

    def planner(self) -> XAttentionPlanner:
        """What the seam carries out."""
        return XAttentionPlanner(self)


class XAttentionPlanner(MaskPlanner):
    """Weighs the tiles again at each call; keeps nothing."""

    planning = 0.05

    def mask(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Tensor:
        """See `MaskPlanner`."""
        tilings = self.tilings(q, k, context)
        weights = antidiagonal_weights(q, k, scale, self.config.stride, tilings, context.key_mask)
        return smallest_set(weights, self.density_setting(context))


def antidiagonal_weights(
    q: Tensor,
    k: Tensor,
    scale: float,
    stride: int,
    tilings: tuple[Tiling, Tiling],
    key_mask: Tensor | None = None,
) -> Tensor:
    """Weight of each tile, float32 `(B, H, Tq, Tk)`; a row of full tiles adds up to its squares.

    Args:
        q: `(B, H, L, D)`.
        k: `(B, Hkv, L, D)`.
        scale: of the softmax.
        stride: side of the squares.
        tilings: of the queries and of the keys, whose tiles are multiples of the stride.
        key_mask: bool `(B, L)`, True for keys that take part; None for all.
    """
    rows, columns = (-(-tiling.length // stride) for tiling in tilings)
    if key_mask is not None:
        k = k * key_mask[:, None, :, None].to(k.dtype)
    joined_k = _padded(k, stride).unflatten(2, (columns, stride)).flatten(3).float()
    joined_q = _padded(q, stride).unflatten(2, (rows, stride)).flip(3).flatten(3).float()
    empty = None
    if key_mask is not None:
        short = F.pad(key_mask, (0, columns * stride - key_mask.shape[1]))
        empty = ~short.unflatten(1, (columns, stride)).any(-1)[:, None, None]
    assert tilings[0].tile is not None and tilings[1].tile is not None
    per_row, per_column = (tiling.tile // stride for tiling in tilings if tiling.tile)
    # whole rows of tiles at once
    step = max(1, _CHUNK // (q.shape[0] * q.shape[1] * columns * per_row)) * per_row
    found = []
    for part in joined_q.split(step, 2):
        scores = grouped_product(part, joined_k) * (scale / stride)
        if empty is not None:
            scores = scores.masked_fill(empty, -torch.inf)
        shares = scores.softmax(-1).nan_to_num(nan=0.0)
        shares = F.pad(shares, (0, -columns % per_column, 0, -part.shape[2] % per_row))
        shares = shares.unflatten(-1, (-1, per_column)).sum(-1)
        found.append(shares.unflatten(2, (-1, per_row)).sum(3))
    return torch.cat(found, 2)


def _padded(x: Tensor, stride: int) -> Tensor:
    """Tokens to a multiple of the stride, with zeros behind them."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % stride))
