"""k-means in Triton: assignment without a distance matrix, means over tokens sorted by label."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import why_not_triton
from ..permutation import order_by_label
from ..segments import segment_means_by_triton
from ..triton_common import Launch, block_of
from .call import Clusters, KMeansCall


def why_not(call: KMeansCall) -> str | None:
    """Why the kernels cannot run this call, None if they can."""
    return why_not_triton(call.x)


def run(call: KMeansCall) -> Clusters:
    """Fixed iterations; nothing waits for the device, and no atomics, so runs repeat exactly."""
    centroids = call.centroids.contiguous()
    clusters = centroids.shape[2]
    for iteration in range(max(call.iterations, 1)):
        labels = _assign(call.x, centroids)
        order, offsets = order_by_label(labels, clusters)
        if iteration < call.iterations:
            centroids = segment_means_by_triton(call.x, offsets, order, empty=centroids)
    return Clusters(labels, centroids, offsets.diff(dim=-1))


def assign_launch(dim: int) -> Launch:
    """Flags and options of the assignment."""
    return Launch({"D": dim, "BLOCK_D": block_of(dim), "BLOCK_L": 64, "BLOCK_C": 32}, 4, 2)


def _assign(x: Tensor, centroids: Tensor) -> Tensor:
    """Nearest centroid of each token, int32 `(B, H, L)`; centroids float32, contiguous."""
    from .triton_kernel import assign_kernel

    batch, heads, length, dim = x.shape
    labels = torch.empty((batch, heads, length), dtype=torch.int32, device=x.device)
    launch = assign_launch(dim)
    assign_kernel[(-(-length // launch.flags["BLOCK_L"]), batch * heads)](
        x,
        centroids,
        centroids.square().sum(-1),
        labels,
        *x.stride(),
        heads,
        length,
        centroids.shape[2],
        **launch.options,
    )
    return labels
