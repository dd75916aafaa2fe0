"""Kernel distance between two sets of features (Bińkowski et al. 2018): unbiased at small N."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torchmetrics.image.kid import KernelInceptionDistance

from .fid import Identity, feature_sets

_SUBSET = 1000


def kid(reference: Tensor, candidate: Tensor) -> float:
    """Squared maximum mean discrepancy with the cubic polynomial kernel.

    Args:
        reference: (N, D) features of real or dense samples.
        candidate: (M, D) features of the samples to judge.

    Returns:
        The unbiased estimate; near 0 (also slightly negative) for equal distributions.

    Raises:
        UsageError: see `fid.feature_sets`.
    """
    a, b = feature_sets(reference, candidate)
    size = min(len(a), len(b), _SUBSET)
    subsets = 1 if size == len(a) == len(b) else 20
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "saves all features": they are few here
        metric = KernelInceptionDistance(
            feature=Identity(a.shape[1]), subsets=subsets, subset_size=size, normalize=True
        )
    metric.set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    # The subsets are drawn from torch's global state, which is the caller's.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mean, _ = metric.compute()
    return float(mean)
