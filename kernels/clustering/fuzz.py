"""Random tokens that are clustered, sorted, permuted and pooled; run by `..fuzz`."""

from __future__ import annotations

import random

import torch

from ..fuzz import poisoned
from ..permutation import inverse_permute, order_by_label, permute
from ..pooling import pool_tiles
from ..tiling import Tiling
from . import kmeans

INTERPRETED = (10, 400)


def check(
    seed: int, backend: str, device: str = "cpu", dtype: torch.dtype | None = None
) -> list[str]:
    """Cluster, sort, permute and pool random tokens; what is wrong, one sentence each.

    Args:
        seed: of the tokens.
        backend: of all four operations.
        device: where the tokens are.
        dtype: of the tokens; float32 by default.
    """
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    shape = (rng.choice((1, 2)), rng.choice((1, 3)), rng.randint(1, 150), rng.choice((16, 24, 64)))
    clusters = rng.randint(1, min(40, shape[2]))
    # Small integers: distances to centroids that are tokens are exact, and ties are real ties.
    x = torch.randint(-2, 3, shape, generator=generator).float()
    if rng.random() < 0.5:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    x = x.to(device, dtype or torch.float32)
    wrong = []
    start = x[:, :, :clusters]
    with poisoned():
        nearest = kmeans(x, clusters, 0, start, backend=backend)
        found = kmeans(x, clusters, 3, start, backend=backend)
        order, offsets = order_by_label(found.labels, clusters)
        sorted_x = permute(x, order, backend=backend)
        back = inverse_permute(sorted_x, order, torch.empty_like(x), backend=backend)
        means = pool_tiles(sorted_x, Tiling.variable(offsets, shape[2]), backend=backend)
    if not torch.equal(nearest.labels, kmeans(x, clusters, 0, start, backend="naive").labels):
        wrong.append("labels are not those of the nearest centroids")
    if not torch.equal(found.sizes, offsets.diff(dim=-1)):
        wrong.append("sizes are not the counts of the labels")
    if not torch.equal(sorted_x, x.gather(2, order.long()[..., None].expand_as(x))):
        wrong.append("permute is not a gather")
    if not torch.equal(back, x):
        wrong.append("inverse_permute does not undo permute")
    held = (found.sizes > 0)[..., None]
    if not torch.allclose(means, torch.where(held, found.centroids, 0.0), atol=1e-5):
        wrong.append("centroids are not the means of their tokens")
    return wrong
