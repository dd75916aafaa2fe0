"""The tile map: constructors, conversions, must-keep ranges, density, and what it refuses."""

import pytest
import torch
from ditaccel.kernels import TileMap, Tiling, keep_keys, keep_queries, pack_mask, unpack_mask


def _clusters(*sizes: int) -> Tiling:
    offsets = torch.tensor([0, *sizes]).cumsum(0).int().view(1, 1, -1)
    return Tiling.variable(offsets, sum(sizes))


def _map(*rows: str, q: Tiling | None = None, k: Tiling | None = None) -> TileMap:
    """A map from rows like "x.x" (kept, dropped, kept); tiles of 4 tokens by default."""
    mask = torch.tensor([[[[c == "x" for c in row] for row in rows]]])
    q = q or Tiling.fixed(4 * len(rows), 4)
    return TileMap.from_mask(mask, q, k or Tiling.fixed(4 * len(rows[0]), 4))


def test_lists_are_the_kept_tiles_in_ascending_order() -> None:
    tile_map = _map("x.x", "...", "xxx")
    assert tile_map.counts.tolist() == [[[2, 0, 3]]]
    assert tile_map.indices[0, 0, 0, :2].tolist() == [0, 2]
    assert tile_map.indices[0, 0, 2].tolist() == [0, 1, 2]
    tile_map.validate()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 17), (1, 4, 7, 8)])
def test_mask_lists_bits_and_back(shape: tuple[int, ...]) -> None:
    for density in (0.0, 0.3, 1.0):
        mask = torch.rand(shape) < density
        q, k = Tiling.fixed(shape[2] * 3 - 2, 3), Tiling.fixed(shape[3] * 5 - 4, 5)
        tile_map = TileMap.from_mask(mask, q, k)
        tile_map.validate()
        assert torch.equal(tile_map.to_mask(), mask)
        assert torch.equal(TileMap.unpack(tile_map.pack(), q, k).to_mask(), mask)
        assert torch.equal(unpack_mask(pack_mask(mask), shape[3]), mask)


def test_bits_take_an_eighth_of_a_byte_for_each_tile() -> None:
    assert pack_mask(torch.ones(2, 40, 17, 64, dtype=torch.bool)).numel() == 2 * 40 * 17 * 8


def test_dense_keeps_everything_for_all_heads() -> None:
    tile_map = TileMap.dense(Tiling.fixed(10, 4), Tiling.fixed(7, 3))
    assert tile_map.to_mask().shape == (1, 1, 3, 3) and tile_map.density() == 1.0


def test_reversed_turns_the_listed_part_only() -> None:
    turned = _map("x.xx", ".x..").reversed()
    turned.validate()
    assert turned.indices[0, 0, 0, :3].tolist() == [3, 2, 0]
    assert turned.indices[0, 0, 1, :1].tolist() == [1]


def test_density_counts_pairs_of_tokens() -> None:
    # Tiles of 4 and 2 queries, of 4 and 1 keys: the corner holds 2 of 30 pairs.
    tile_map = _map("..", ".x", q=Tiling.fixed(6, 4), k=Tiling.fixed(5, 4))
    assert tile_map.density() == pytest.approx(2 / 30)
    assert tile_map.density(weighted=False) == pytest.approx(1 / 4)
    clusters = _map("x..", "..x", q=_clusters(1, 9), k=_clusters(5, 0, 15))
    assert clusters.density() == pytest.approx((1 * 5 + 9 * 15) / 200)


def test_heads_have_their_own_density() -> None:
    mask = torch.stack([torch.ones(2, 4), torch.eye(2, 4)]).bool()[None]
    tile_map = TileMap.from_mask(mask, Tiling.fixed(8, 4), Tiling.fixed(16, 4))
    assert tile_map.densities().tolist() == [[1.0, 0.25]]


def test_kept_ranges_are_widened_to_whole_tiles() -> None:
    empty = torch.zeros(1, 1, 3, 4, dtype=torch.bool)
    kept = keep_keys(empty, [(0, 1), (7, 9)], Tiling.fixed(16, 4))
    assert kept[0, 0].tolist() == [[True, True, True, False]] * 3
    kept = keep_queries(empty, [(11, 12)], Tiling.fixed(12, 4))
    assert kept[0, 0].any(-1).tolist() == [False, False, True]
    kept = keep_keys(empty, [(3, 5)], _clusters(4, 0, 4, 8))
    assert kept[0, 0, 0].tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([(4, 4)], "must hold a token"),
        ([(0, 17)], "inside the sequence of 16"),
        ([(0, 5), (4, 8)], "without overlap"),
        ([(8, 12), (0, 4)], "ascending"),
    ],
)
def test_ranges_that_mean_nothing_are_refused(ranges: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        keep_keys(torch.zeros(1, 1, 1, 4, dtype=torch.bool), ranges, Tiling.fixed(16, 4))


def test_block_masks_convert_both_ways() -> None:
    tile_map = _map("x.x", "...", "xxx")
    block_mask = tile_map.to_block_mask()
    assert block_mask.seq_lengths == (12, 12)
    assert torch.equal(TileMap.from_block_mask(block_mask).to_mask(), tile_map.to_mask())


def test_a_block_mask_with_partial_blocks_is_refused() -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    def causal(b: int, h: int, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return q >= k

    block_mask = create_block_mask(causal, None, None, 256, 256, device="cpu", BLOCK_SIZE=128)
    with pytest.raises(ValueError, match="kept in part only"):
        TileMap.from_block_mask(block_mask)


def test_clusters_are_no_block_mask() -> None:
    with pytest.raises(ValueError, match="variable size"):
        _map("x", q=_clusters(4), k=_clusters(4)).to_block_mask()


@pytest.mark.parametrize(
    ("indices", "counts", "message"),
    [
        ([[0, 3]], [2], "between 0 and 2"),
        ([[-1, 0]], [2], "between 0 and 2"),
        ([[1, 1]], [2], "twice"),
        ([[0, 1]], [3], "counts must lie between 0 and 2"),
    ],
)
def test_validate_names_what_is_wrong(
    indices: list[list[int]], counts: list[int], message: str
) -> None:
    tile_map = TileMap(
        torch.tensor([[indices]], dtype=torch.int32),
        torch.tensor([[counts]], dtype=torch.int32),
        Tiling.fixed(4, 4),
        Tiling.fixed(12, 4),
    )
    with pytest.raises(ValueError, match=message):
        tile_map.validate()


@pytest.mark.parametrize(
    ("offsets", "message"),
    [([1, 8], "start at 0"), ([0, 6, 4, 8], "must not fall"), ([0, 7], "end at the length 8")],
)
def test_validate_checks_offsets(offsets: list[int], message: str) -> None:
    tiling = Tiling.variable(torch.tensor([[offsets]], dtype=torch.int32), 8)
    with pytest.raises(ValueError, match=f"k_tiling: .*{message}"):
        TileMap.dense(Tiling.fixed(8, 4), tiling).validate()


def test_shapes_and_dtypes_that_do_not_fit_are_refused() -> None:
    q, k = Tiling.fixed(8, 4), Tiling.fixed(12, 4)
    with pytest.raises(TypeError, match="mask must be bool"):
        TileMap.from_mask(torch.ones(1, 1, 2, 3), q, k)
    with pytest.raises(ValueError, match="mask must have the shape"):
        TileMap.from_mask(torch.ones(1, 1, 3, 2, dtype=torch.bool), q, k)
    good = TileMap.dense(q, k)
    with pytest.raises(TypeError, match="indices must be int32"):
        TileMap(good.indices.long(), good.counts, q, k)
    with pytest.raises(ValueError, match="q_tiling has 3"):
        TileMap(good.indices, good.counts, Tiling.fixed(12, 4), k)
    with pytest.raises(ValueError, match="not both"):
        Tiling(8)
    with pytest.raises(ValueError, match="holds 3 bytes"):
        unpack_mask(torch.zeros(3, dtype=torch.uint8), 9)
