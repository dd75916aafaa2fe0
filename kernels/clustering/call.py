"""What a call of `kmeans` is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Clusters(NamedTuple):
    """What `kmeans` returns.

    Attributes:
        labels: int32 `(B, H, L)`, the cluster of each token: the nearest centroid before the last
            update, the lowest one of several.
        centroids: float32 `(B, H, C, D)`, after the last update: the mean of the tokens that
            `labels` gives to the cluster. An empty cluster keeps its centroid.
        sizes: int32 `(B, H, C)`, tokens of each cluster; 0 is possible.
    """

    labels: Tensor
    centroids: Tensor
    sizes: Tensor


@dataclass(frozen=True, eq=False)
class KMeansCall:
    """A checked call; `centroids` are float32, and the caller's are never written to."""

    x: Tensor
    centroids: Tensor
    iterations: int


def check_call(
    x: Tensor,
    clusters: int,
    iterations: int,
    centroids: Tensor | None,
    generator: torch.Generator | None,
) -> KMeansCall:
    """Turn the arguments of `kmeans` into a call, or say what is wrong with them."""
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"x must have the shape (B, H, L, D), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating point tensor, got {x.dtype}")
    batch, heads, length, dim = x.shape
    if not 1 <= clusters <= length:
        raise ValueError(f"clusters must be between 1 and the {length} tokens of x, got {clusters}")
    if iterations < 0 or (iterations == 0 and centroids is None):
        raise ValueError(
            f"iterations must be at least {0 if centroids is not None else 1} "
            f"{'with' if centroids is not None else 'without'} centroids, got {iterations}"
        )
    if centroids is None:
        centroids = _sample(x, clusters, generator)
    elif generator is not None:
        raise ValueError("generator draws the first centroids; leave it out where they are given")
    elif tuple(centroids.shape) != (batch, heads, clusters, dim):
        raise ValueError(
            f"centroids must have the shape {(batch, heads, clusters, dim)}, got "
            f"{tuple(centroids.shape)}"
        )
    elif centroids.device != x.device:
        raise ValueError(f"centroids is on {centroids.device}, but x on {x.device}")
    return KMeansCall(x, centroids.float(), iterations)


def _sample(x: Tensor, clusters: int, generator: torch.Generator | None) -> Tensor:
    """Different tokens as the first centroids, at the same places in all heads and batch items, so
    that no item's result depends on what else is in the batch."""
    if generator is None:
        # Private: a draw from the global generator would shift the noise of the caller's pipeline.
        generator = torch.Generator("cpu").manual_seed(0)
    places = torch.randperm(x.shape[2], generator=generator, device=generator.device)[:clusters]
    return x.index_select(2, places.to(x.device))
