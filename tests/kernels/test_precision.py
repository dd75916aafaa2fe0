"""Under autocast, kernels compute as their arguments' dtypes say."""

import pytest
import torch
from ditaccel.kernels import (
    TileMap,
    Tiling,
    kmeans,
    moment_attention,
    pool_tiles,
    pooled_scores,
    sparse_linear_attention,
    tile_attention,
    tile_moments,
)

TILINGS = Tiling.fixed(40, 16), Tiling.fixed(40, 16)


def _mask():
    mask = torch.ones(1, 2, 3, 3, dtype=torch.bool)
    mask[..., 0, 2] = False
    return mask


def _sparse(q, k, v):
    return tile_attention(q, k, v, TileMap.from_mask(_mask(), *TILINGS)).output


def _linear(q, k, v):
    tile_map = TileMap.from_mask(_mask(), *TILINGS)
    out = sparse_linear_attention(q, k, v, tile_map, ~_mask(), q_features=q.exp(), k_features=k)
    return out.linear


def _moments(q, k, v):
    return moment_attention(q, k, v, ~_mask(), *TILINGS)[0]


CALLS = {
    "tile_attention": _sparse,
    "sparse_linear_attention": _linear,
    "moment_attention": _moments,
    "tile_moments": lambda q, k, v: tile_moments(k, v, TILINGS[1]).keys,
    "kmeans": lambda q, k, v: kmeans(k, 4, 3).centroids,
    "pool_tiles": lambda q, k, v: pool_tiles(q, TILINGS[0]),
    "pooled_scores": lambda q, k, v: pooled_scores(q, k, *TILINGS),
}


@pytest.mark.parametrize("name", CALLS)
def test_autocast_changes_nothing(name):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 40, 16, generator=generator) for _ in range(3))
    expected = CALLS[name](q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = CALLS[name](q, k, v)
    assert result.dtype == expected.dtype and torch.equal(result, expected)
