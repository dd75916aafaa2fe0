"""What a call of `moment_attention` is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..tiling import Tiling
from .moments import TileMoments, in_tiles, score_variance, tile_moments, tile_of, wide


@dataclass(frozen=True, eq=False)
class MomentCall:
    """A checked call; see `moment_attention`."""

    q: Tensor
    k: Tensor
    v: Tensor
    marginal: Tensor
    q_tiling: Tiling
    k_tiling: Tiling
    scale: float
    mask: Tensor | None
    moments: TileMoments

    @property
    def q_tile(self) -> int:
        """Queries of a tile."""
        return tile_of(self.q_tiling)

    def half_variance(self) -> Tensor:
        """`u / 2` of every query tile and key tile, `(B, H, Tq, Tk)`."""
        queries = in_tiles(self.q.to(wide(self.q)), self.q_tile)
        sizes = self.q_tiling.sizes(self.q.device).to(queries.dtype)
        q_means = queries.sum(3) / sizes.view(1, 1, -1, 1)
        return score_variance(q_means, self.moments, self.scale) / 2

    def bias(self, half: Tensor) -> Tensor:
        """What is added to the logits, `(B, H, Tq, Tk)`; -inf for tiles that are not marginal."""
        sizes = self.moments.sizes[:, :, None]
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
) -> MomentCall:
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
    if moments is None:
        moments = tile_moments(k, v, k_tiling, mask)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    marginal = marginal.expand(q.shape[0], q.shape[1], *tiles)
    return MomentCall(q, k, v, marginal, q_tiling, k_tiling, scale, mask, moments)
