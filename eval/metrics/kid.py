"""Kernel distance between two sets of features (Bińkowski et al. 2018): unbiased at small N."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .base import Better, Estimate, Metric, Need, Per, Shown, Unit, register
from .fid import FEW, FEW_WORDS, FEWEST, Identity, feature_sets

_SUBSET = 1000
_CHUNK = 1024


def kid(reference: Tensor, candidate: Tensor) -> float:
    """Squared maximum mean discrepancy with the cubic polynomial kernel.

    Args:
        reference: (N, D) features of real or dense samples.
        candidate: (M, D) features of the samples to judge.

    Returns:
        The unbiased estimate; near 0 (also slightly negative) for equal distributions, and 0 for
        one and the same set: the estimate holds for sets drawn apart, and of a set with itself it
        would be far below 0.

    Raises:
        UsageError: see `fid.feature_sets`.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = feature_sets(reference, candidate)
    if a.shape == b.shape and torch.equal(a, b):
        return 0.0
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


def _row_sums(x: Tensor, y: Tensor) -> Tensor:
    """Sums over y of the polynomial kernel, for each of x, a part at a time."""
    width = x.shape[1]
    return torch.cat([((part @ y.T / width + 1) ** 3).sum(1) for part in x.split(_CHUNK)])


def kid_error(reference: Tensor, candidate: Tensor) -> float:
    """Standard error of the unbiased estimate, by leaving out one sample at a time (jackknife).

    Args:
        reference: see `kid`.
        candidate: see `kid`.

    Raises:
        UsageError: see `fid.feature_sets`.
    """
    a, b = feature_sets(reference, candidate)
    variance = 0.0
    for x, y in ((a, b), (b, a)):
        m, n = len(x), len(y)
        own = _row_sums(x, x) - ((x * x).sum(1) / x.shape[1] + 1) ** 3
        cross = _row_sums(x, y)
        # Of the estimate only these two terms change when one of x is left out.
        left = (own.sum() - 2 * own) / ((m - 1) * (m - 2)) - 2 * (cross.sum() - cross) / (
            (m - 1) * n
        )
        variance += float(((left - left.mean()) ** 2).sum()) * (m - 1) / m
    return variance**0.5


register(
    Metric(
        key="kid_real",
        title="KID real",
        unit=Unit.NUMBER,
        better=Better.LOWER,
        about="kernel distance of features to real samples; ± one standard error",
        run=lambda real, own: Estimate(kid(real, own), kid_error(real, own)),
        per=Per.SET,
        package="torchmetrics",
        how="pip install 'ditaccel[eval]'",
        needs=(Need.PICTURES, Need.FEATURES, Need.REFERENCE),
        shown=Shown.PAGE,
        fewest=FEWEST,
        enough=FEW,
        few=FEW_WORDS,
    )
)
