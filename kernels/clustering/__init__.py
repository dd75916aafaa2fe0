"""k-means over the tokens of each head: the public function and its backends."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Backend, anywhere, choose, own_precision
from . import naive, torch_backend, triton_backend
from .call import Clusters, KMeansCall, check_call

__all__ = ["Clusters", "kmeans"]

BACKENDS: tuple[Backend[KMeansCall], ...] = (
    Backend("triton", triton_backend.why_not, triton_backend.run),
    Backend("torch", anywhere, torch_backend.run),
    Backend("naive", naive.why_not, naive.run, by_name_only=True),
)


@own_precision
def kmeans(
    x: Tensor,
    clusters: int,
    iterations: int,
    centroids: Tensor | None = None,
    generator: torch.Generator | None = None,
    *,
    backend: str | None = None,
) -> Clusters:
    """Cluster the tokens of each head by Euclidean distance (Lloyd's iterations).

    The iterations are fixed in number and nothing waits for the device. The caller's tensors and
    torch's global generator are left as they are.

    Args:
        x: `(B, H, L, D)`, any strides.
        clusters: C, at most L.
        iterations: of assignment and update; 0 with `centroids` only assigns.
        centroids: `(B, H, C, D)` to begin with (warm start); by default different tokens drawn by
            `generator`, at the same places in all heads.
        generator: for that draw; by default a private one with a fixed seed.
        backend: `triton`, `torch` or `naive`; by default the first that can run the call.

    Returns:
        Labels, centroids and sizes. The centroids are the means of the tokens that the labels give
        to them, so a token may lie nearer to another centroid by then.

    Raises:
        TypeError: x is not floating point.
        ValueError: more clusters than tokens, or shapes that do not fit.
    """
    call = check_call(x, clusters, iterations, centroids, generator)
    return choose("kmeans", BACKENDS, call, backend).run(call)
