"""Kernel distance between two sets of features (Bińkowski et al. 2018): unbiased at small N."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from .base import Better, Estimate, Metric, Need, Per, Shown, Unit, register
from .fid import DRAWS, FEW, FEW_WORDS, FEWEST, feature_sets, interval

_SUBSET = 1000
_CHUNK = 1024
# Above, kernels between all pairs would take gigabytes, and the estimate is as good as normal.
_MOST = 4096
_NORMAL = 1.96


class _Identity(nn.Module):
    """Hands features through, so that torchmetrics' accumulators serve any extractor."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, D) as they came."""
        return features


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
            feature=_Identity(a.shape[1]), subsets=subsets, subset_size=size, normalize=True
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


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_of_pairs(kernel: Tensor, counts: Tensor) -> Tensor:
    """Mean over pairs of two different samples, for each of several draws.

    Args:
        kernel: (N, N).
        counts: (R, N), how often each draw holds a sample.
    """
    diagonal = kernel.diagonal()
    total = ((counts @ kernel) * counts).sum(1) - (counts.square() * diagonal).sum(1)
    return total / (counts.sum(1).square() - counts.square().sum(1))


def kid_interval(reference: Tensor, candidate: Tensor) -> tuple[float, float]:
    """The 95 % interval of `kid` by bootstrap (Efron 1979), from 200 draws.

    A sample that was drawn twice is not paired with itself, or sets that are drawn again would be
    nearer to themselves than any other samples.

    Args:
        reference: see `kid`.
        candidate: see `kid`.

    Raises:
        UsageError: see `fid.feature_sets`.
    """
    a, b = feature_sets(reference, candidate)
    value = kid(a, b)
    if max(len(a), len(b)) > _MOST:
        error = _NORMAL * kid_error(a, b)
        return value - error, value + error
    random = torch.Generator().manual_seed(0)
    counts = []
    for x in (a, b):
        drawn = torch.randint(len(x), (DRAWS, len(x)), generator=random)
        counts.append(
            torch.zeros(DRAWS, len(x), dtype=x.dtype).scatter_add_(1, drawn, _ones(drawn))
        )
    of_a, of_b = counts
    cross = ((of_a @ _kernel(a, b)) * of_b).sum(1) / (len(a) * len(b))
    within = _mean_of_pairs(_kernel(a, a), of_a) + _mean_of_pairs(_kernel(b, b), of_b)
    return interval(value, within - 2 * cross)


def _ones(like: Tensor) -> Tensor:
    return torch.ones(like.shape, dtype=torch.float64)


def _estimate(real: Tensor, own: Tensor) -> Estimate:
    return Estimate(kid(real, own), kid_error(real, own), kid_interval(real, own))


register(
    Metric(
        key="kid_real",
        title="KID real",
        unit=Unit.NUMBER,
        better=Better.LOWER,
        about="kernel distance of features to real samples; 95 % interval by bootstrap",
        run=_estimate,
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
