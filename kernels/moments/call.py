"""What calls of `moment_attention` and `tile_moments` are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..tiling import Tiling
from .moments import TileMoments, in_tiles, score_variance, tile_of, wide


@dataclass(frozen=True, eq=False)
class TileMomentsCall:
    """A call of `tile_moments`, over tiles of fixed size."""

    k: Tensor
    v: Tensor
    tiling: Tiling
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class MomentAttentionCall:
    """A checked call; see `moment_attention`. The moments are None where they are not known yet."""

    q: Tensor
    k: Tensor
    v: Tensor
    marginal: Tensor
    q_tiling: Tiling
    k_tiling: Tiling
    scale: float
    mask: Tensor | None
    moments: TileMoments | None

    @property
    def q_tile(self) -> int:
        """Queries of a tile."""
        return tile_of(self.q_tiling)

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.q.shape[1] // self.k.shape[1]

    @property
    def moments_call(self) -> TileMomentsCall:
        """The call that makes the moments."""
        return TileMomentsCall(self.k, self.v, self.k_tiling, self.mask)

    def half_variance(self, moments: TileMoments) -> Tensor:
        """`u / 2` of every query tile and key tile, `(B, H, Tq, Tk)`."""
        queries = in_tiles(self.q.to(wide(self.q)), self.q_tile)
        sizes = self.q_tiling.sizes(self.q.device).to(queries.dtype)
        q_means = queries.sum(3) / sizes.view(1, 1, -1, 1)
        return score_variance(q_means, moments, self.scale) / 2

    def bias(self, half: Tensor, moments: TileMoments) -> Tensor:
        """What is added to the logits, `(B, H, Tq, Tk)`; -inf for tiles that are not marginal."""
        sizes = moments.sizes[:, :, None]
        logits = half.log1p() + sizes.clamp(min=1).log()
        return logits.masked_fill(~(self.marginal & (sizes > 0)), -torch.inf)


def check_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    marginal: Tensor,
    q_tiling: Tiling,
    k_tiling: Tiling,
    scale: float | None,
    mask: Tensor | None,
    moments: TileMoments | None,
) -> MomentAttentionCall:
    """Turn the arguments of `moment_attention` into a call, or say what is wrong with them."""
    tiles = (q_tiling.tiles, k_tiling.tiles)
    if marginal.dtype != torch.bool or tuple(marginal.shape[-2:]) != tiles or marginal.ndim != 4:
        raise ValueError(
            f"marginal must be bool (B or 1, H or 1, {tiles[0]}, {tiles[1]}), got "
            f"{marginal.dtype} {tuple(marginal.shape)}"
        )
    if (q_tiling.length, k_tiling.length) != (q.shape[2], k.shape[2]):
        raise ValueError(
            f"tilings are for {q_tiling.length} queries and {k_tiling.length} keys, but there are "
            f"{q.shape[2]} and {k.shape[2]}"
        )
    tile_of(q_tiling)
    tile_of(k_tiling)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    marginal = marginal.expand(q.shape[0], q.shape[1], *tiles)
    return MomentAttentionCall(q, k, v, marginal, q_tiling, k_tiling, scale, mask, moments)
