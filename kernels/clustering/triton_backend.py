"""k-means in Triton: assignment without a distance matrix, means over tokens sorted by label."""

from __future__ import annotations

from ..permutation import order_by_label
from ..triton_launch import assign, segment_means
from ..triton_launch import why_not as why_not_on
from .call import Clusters, KMeansCall


def why_not(call: KMeansCall) -> str | None:
    """Why the kernels cannot run this call, None if they can."""
    return why_not_on(call.x)


def run(call: KMeansCall) -> Clusters:
    """Fixed iterations; nothing waits for the device, and no atomics, so runs repeat exactly."""
    centroids = call.centroids.contiguous()
    clusters = centroids.shape[2]
    for iteration in range(max(call.iterations, 1)):
        labels = assign(call.x, centroids)
        order, offsets = order_by_label(labels, clusters)
        if iteration < call.iterations:
            centroids = segment_means(call.x, offsets, order, empty=centroids)
    return Clusters(labels, centroids, offsets.diff(dim=-1))
