"""The definition of k-means, in float64, one head after the other."""

from __future__ import annotations

import torch

from ..dispatch import why_no_float64
from .call import Clusters, KMeansCall


def why_not(call: KMeansCall) -> str | None:
    """Why the definition cannot run, None if it can."""
    return why_no_float64(call.x.device)


def run(call: KMeansCall) -> Clusters:
    """Lloyd's iterations: give each token to the nearest centroid, move centroids to the mean."""
    batch, heads, length, _ = call.x.shape
    clusters = call.centroids.shape[2]
    labels = torch.empty((batch, heads, length), dtype=torch.int32, device=call.x.device)
    sizes = torch.empty((batch, heads, clusters), dtype=torch.int32, device=call.x.device)
    centroids = call.centroids.double()
    for b in range(batch):
        for h in range(heads):
            x, own = call.x[b, h].double(), centroids[b, h].clone()
            for iteration in range(max(call.iterations, 1)):
                nearest = (x[:, None] - own).square().sum(-1).argmin(-1)
                for c in range(clusters if iteration < call.iterations else 0):
                    if (nearest == c).any():
                        own[c] = x[nearest == c].mean(0)
            labels[b, h], centroids[b, h] = nearest, own
            sizes[b, h] = nearest.bincount(minlength=clusters)
    return Clusters(labels, centroids.float(), sizes)
