"""k-means in plain torch; nothing of size tokens x clusters is stored for all heads at once."""

from __future__ import annotations

import torch
from torch import Tensor

from ..segments import segment_sums
from .call import Clusters, KMeansCall

# Distances that are held at once: they stay in a core's cache on a CPU.
_DISTANCES = {"cpu": 1 << 18}
_DISTANCES_ELSEWHERE = 1 << 26


def run(call: KMeansCall) -> Clusters:
    """Fixed iterations without a look at the values, so nothing waits for the device."""
    x, centroids = call.x.float(), call.centroids
    clusters = centroids.shape[2]
    for iteration in range(max(call.iterations, 1)):
        labels = _assign(x, centroids)
        sizes = _sizes(labels, clusters)
        if iteration < call.iterations:
            means = segment_sums(x, labels, clusters) / sizes.clamp(min=1)[..., None]
            centroids = torch.where(sizes[..., None] > 0, means, centroids)
    return Clusters(labels, centroids, sizes)


def _assign(x: Tensor, centroids: Tensor) -> Tensor:
    """Nearest centroid of each token, int32 `(B, H, L)`."""
    batch, heads, length, _ = x.shape
    clusters = centroids.shape[2]
    # |x - c|^2 = |x|^2 - 2 x c + |c|^2, of which |x|^2 is the same for all centroids.
    squares = centroids.square().sum(-1)
    labels = torch.empty((batch, heads, length), dtype=torch.int32, device=x.device)
    held = _DISTANCES.get(x.device.type, _DISTANCES_ELSEWHERE)
    if x.device.type == "cpu":
        step = max(1, held // clusters)
        for b in range(batch):
            for h in range(heads):
                for at in range(0, length, step):
                    part = x[b, h, at : at + step]
                    distances = torch.addmm(squares[b, h], part, centroids[b, h].T, alpha=-2)
                    labels[b, h, at : at + step] = distances.argmin(-1)
        return labels
    step = max(1, held // (clusters * batch * heads))
    for at in range(0, length, step):
        products = x[:, :, at : at + step] @ centroids.transpose(-1, -2)
        labels[:, :, at : at + step] = (squares[:, :, None] - 2 * products).argmin(-1)
    return labels


def _sizes(labels: Tensor, clusters: int) -> Tensor:
    sizes = torch.zeros((*labels.shape[:2], clusters), dtype=torch.int32, device=labels.device)
    return sizes.scatter_add_(-1, labels.long(), torch.ones_like(labels))
