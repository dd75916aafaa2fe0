"""Means of tiles in plain torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..segments import segment_sums
from .call import PoolCall


def why_not(call: PoolCall) -> str | None:
    """This backend runs everywhere."""
    return None


def run(call: PoolCall) -> Tensor:
    """Mean of the tokens of each tile, in float32."""
    x, tiling = call.x, call.tiling
    sizes = tiling.sizes(x.device)[..., None]
    if tiling.tile is not None:
        padded = F.pad(x, (0, 0, 0, -tiling.length % tiling.tile))
        return padded.unflatten(2, (-1, tiling.tile)).float().sum(3) / sizes
    sums = segment_sums(x, tiling.tile_of_token(x.device), tiling.tiles)
    return sums / sizes.clamp(min=1)
