"""k-means, permutations and pooled scores on a CPU."""

from typing import Any

import pytest
import torch
from ditaccel.kernels import (
    TileMap,
    Tiling,
    inverse_permute,
    kmeans,
    order_by_label,
    permute,
    pool_tiles,
    pooled_scores,
    tile_attention,
)
from ditaccel.kernels.fuzz import relative_rmse


def test_separate_groups_are_found() -> None:
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    group = torch.arange(60) % 3
    x = (centers[group] + torch.randn(60, 2) * 0.1)[None, None]
    found = kmeans(x, 3, 5, centroids=centers[None, None] + 1)
    assert found.labels[0, 0].tolist() == group.tolist()
    assert found.sizes[0, 0].tolist() == [20, 20, 20]
    assert torch.allclose(found.centroids[0, 0], centers, atol=0.2)


def test_an_empty_cluster_keeps_its_centroid() -> None:
    far = torch.tensor([[[[0.0, 0.0], [99.0, 99.0]]]])
    found = kmeans(torch.randn(1, 1, 20, 2), 2, 3, centroids=far)
    assert found.sizes.tolist() == [[[20, 0]]]
    assert found.centroids[0, 0, 1].tolist() == [99.0, 99.0]


def test_the_global_generator_and_the_inputs_are_left_alone() -> None:
    x, start = torch.randn(1, 2, 30, 4), torch.randn(1, 2, 5, 4)
    copies, state = (x.clone(), start.clone()), torch.get_rng_state()
    first = kmeans(x, 5, 2)
    kmeans(x, 5, 2, centroids=start)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, copies[0]) and torch.equal(start, copies[1])
    assert torch.equal(first.labels, kmeans(x, 5, 2).labels)


def test_batch_items_are_clustered_alone() -> None:
    x = torch.randn(3, 2, 50, 8)
    together = kmeans(x, 6, 4)
    alone = kmeans(x[1:2], 6, 4)
    assert torch.equal(together.labels[1:2], alone.labels)
    assert torch.equal(together.centroids[1:2], alone.centroids)


def test_a_generator_draws_the_first_centroids() -> None:
    x = torch.randn(1, 1, 200, 4)
    labels = [
        kmeans(x, 8, 1, generator=torch.Generator().manual_seed(seed)).labels for seed in (1, 1, 2)
    ]
    assert torch.equal(labels[0], labels[1]) and not torch.equal(labels[0], labels[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clusters": 11}, "clusters must be between 1 and the 10 tokens"),
        ({"clusters": 0}, "clusters must be between 1"),
        ({"iterations": 0}, "at least 1 without centroids"),
        ({"centroids": torch.zeros(1, 1, 4, 4)}, "centroids must have the shape"),
        (
            {"centroids": torch.zeros(1, 1, 3, 4), "generator": torch.Generator()},
            "leave it out",
        ),
    ],
)
def test_bad_clusterings_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kmeans(torch.zeros(1, 1, 10, 4), **{"clusters": 3, "iterations": 1, **arguments})


def test_order_is_stable_and_offsets_count() -> None:
    labels = torch.tensor([[[2, 0, 2, 0, 3]]], dtype=torch.int32)
    order, offsets = order_by_label(labels, 5)
    assert order.tolist() == [[[1, 3, 0, 2, 4]]]
    assert offsets.tolist() == [[[0, 2, 2, 4, 5, 5]]]
    with pytest.raises(TypeError, match="labels must be int32"):
        order_by_label(labels.long(), 5)


def test_permutations_undo_each_other_in_any_layout() -> None:
    x = torch.randn(2, 30, 3, 8).transpose(1, 2)
    order = torch.stack([torch.randperm(30) for _ in range(6)]).view(2, 3, 30).int()
    moved = permute(x, order)
    assert moved.is_contiguous() and torch.equal(moved[1, 2, 7], x[1, 2, order[1, 2, 7]])
    out = torch.empty_like(x)
    assert inverse_permute(moved, order, out) is out
    assert torch.equal(out, x) and out.stride() == x.stride()
    shared = order[:1, :1]
    assert torch.equal(inverse_permute(permute(x, shared), shared), x)


def test_bad_permutations_are_named() -> None:
    x, order = torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, dtype=torch.int32)
    with pytest.raises(TypeError, match="order must be int32"):
        permute(x, order.float())
    with pytest.raises(ValueError, match="order must have the shape"):
        permute(x, order[..., :4])
    with pytest.raises(ValueError, match="out must not be x itself"):
        permute(x, order, out=x)
    with pytest.raises(ValueError, match="out must be like x"):
        permute(x, order, out=x.half())


@pytest.mark.parametrize("length", [32, 37])
def test_pooled_scores_are_means_of_scores(length: int) -> None:
    q, k = torch.randn(2, 4, length, 8), torch.randn(2, 2, length, 8)
    tiling = Tiling.fixed(length, 8)
    got = pooled_scores(q, k, tiling, tiling, scale=0.5)
    scores = 0.5 * q @ k.repeat_interleave(2, 1).transpose(-1, -2)
    last = scores[..., 32 if length > 32 else 24 :, 8:16].mean((-1, -2))
    assert torch.allclose(got[..., -1, 1], last, atol=1e-5)


def test_pooling_of_clusters_with_an_empty_one() -> None:
    offsets = torch.tensor([[[0, 3, 3, 10]]], dtype=torch.int32)
    tiling = Tiling.variable(offsets, 10)
    x = torch.randn(1, 2, 10, 4)
    means = pool_tiles(x, tiling)
    assert torch.allclose(means[:, :, 0], x[:, :, :3].mean(2), atol=1e-6)
    assert torch.equal(means[:, :, 1], torch.zeros(1, 2, 4))
    scores = pooled_scores(x, x, tiling, tiling)
    assert bool((scores[..., 1] == -torch.inf).all()) and bool(scores[..., [0, 2]].isfinite().all())
    with pytest.raises(ValueError, match="tiling is for 10 tokens, but x has 9"):
        pool_tiles(x[:, :, :9], tiling)


def test_attention_over_all_pairs_of_clusters_is_dense_attention() -> None:
    # The whole way of a semantic permutation: cluster, sort, attend, and bring back.
    q, k, v = (torch.randn(1, 2, 90, 16) for _ in range(3))
    orders = [order_by_label(kmeans(x, 6, 3).labels, 6) for x in (q, k)]
    (q_order, q_offsets), (k_order, k_offsets) = orders
    q_tiling, k_tiling = Tiling.variable(q_offsets, 90), Tiling.variable(k_offsets, 90)
    got = tile_attention(
        permute(q, q_order),
        permute(k, k_order),
        permute(v, k_order),
        TileMap.dense(q_tiling, k_tiling),
    ).output
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert relative_rmse(inverse_permute(got, q_order), expected) < 1e-6
