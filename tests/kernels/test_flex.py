"""The FlexAttention backend: what it refuses, and (slow: it compiles) that it agrees."""

from typing import Any

import pytest
import torch
from ditaccel.kernels import Marking, TileMap, Tiling, tile_attention, tile_attention_backends
from ditaccel.kernels.fuzz import relative_rmse


def _call(length: int = 200) -> tuple[torch.Tensor, ...]:
    q = torch.randn(1, length, 4, 32).transpose(1, 2)
    return q, torch.randn(1, 2, length, 32), torch.randn(1, 2, length, 32)


def _map(length: int = 200, tile: int = 64) -> TileMap:
    tiling = Tiling.fixed(length, tile)
    mask = torch.rand(1, 4, tiling.tiles, tiling.tiles) < 0.5
    mask[0, 0, 0] = False
    return TileMap.from_mask(mask, tiling, tiling)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"marking": Marking(-1.0)}, "running max"),
        ({"mask": torch.ones(1, 200, dtype=torch.bool)}, "compiled again"),
        ({"return_lse": True}, "no log-sum-exp on a CPU"),
    ],
)
def test_it_refuses_what_it_cannot_do(options: dict[str, Any], reason: str) -> None:
    said = tile_attention_backends(*_call(), _map(), **options)["flex"]
    assert said is not None and reason in said
    with pytest.raises(ValueError, match=reason):
        tile_attention(*_call(), _map(), backend="flex", **options)


def test_clusters_do_not_fit() -> None:
    tiling = Tiling.variable(torch.tensor([[[0, 50, 200]]], dtype=torch.int32), 200)
    said = tile_attention_backends(*_call(), TileMap.dense(tiling, tiling))["flex"]
    assert said is not None and "variable size" in said


@pytest.mark.slow
def test_it_agrees_with_the_definition() -> None:
    q, k, v = _call()
    tile_map = _map()
    got = tile_attention(q, k, v, tile_map, backend="flex").output
    expected = tile_attention(q, k, v, tile_map, backend="naive").output
    assert got.stride() == q.stride()
    assert relative_rmse(got, expected) < 1e-6
