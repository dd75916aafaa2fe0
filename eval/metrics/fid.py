"""Fréchet distance between two sets of features (Heusel et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from ditaccel.errors import UsageError

from .base import Better, Estimate, Metric, Need, Per, Shown, Unit, register

# Between two sets of real pictures the distance is still far from 0 below so many.
FEW = 1000
FEW_WORDS = "biased upwards, so compare rows of the same number of samples only"
# Below, a covariance or a kernel mean tells of the number of samples and of nothing else.
FEWEST = 10
_GROUPS = 10
_WIDEST = 512
# Sets that an interval is made of, and the shares of them that lie below its ends.
DRAWS = 200
_ENDS = (0.025, 0.975)


def feature_sets(reference: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
    """Two feature sets (N, D) and (M, D), checked, in float64.

    Raises:
        UsageError: wrong shape, fewer than `FEWEST` samples, or NaN (it would make the distance
            NaN).
    """
    for name, features in (("reference", reference), ("candidate", candidate)):
        if features.ndim != 2 or features.shape[1] == 0:
            raise UsageError(f"{name} features must be (N, D), got {tuple(features.shape)}")
        if len(features) < FEWEST:
            raise UsageError(
                f"{name}: {len(features)} sample(s); a distance of distributions needs at least "
                f"{FEWEST}, or it tells nothing but their number (more prompts or seeds)"
            )
        if not torch.isfinite(features).all():
            raise UsageError(f"{name} features hold NaN or infinity")
    if reference.shape[1] != candidate.shape[1]:
        raise UsageError(
            f"features differ in width ({reference.shape[1]} and {candidate.shape[1]}): "
            "both sets need the same extractor"
        )
    return reference.double(), candidate.double()


def _factor(features: Tensor) -> Tensor:
    """A matrix (min(N, D), D) whose product with itself is the covariance (D, D)."""
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    # Of many samples the triangular factor is as good, and smaller.
    return centred if len(centred) <= centred.shape[1] else torch.linalg.qr(centred).R


def _frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of the normal distributions that two sets (N, D) in float64 come to."""
    one, other = _factor(a), _factor(b)
    # The eigenvalues of the product of the covariances are the squared singular values of this.
    shared = torch.linalg.svdvals(one @ other.T).sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + one.square().sum() + other.square().sum()
    # Rounding leaves ±1e-12 for equal sets; a distance is not negative.
    return max(0.0, float(distance - 2 * shared))


def fid(reference: Tensor, candidate: Tensor) -> float:
    """Fréchet distance of two feature sets.

    Args:
        reference: (N, D) features of real or dense samples.
        candidate: (M, D) features of the samples to judge.

    Returns:
        Distance >= 0; 0 for the same set. Compare only values of one extractor and one N.

    Raises:
        UsageError: see `feature_sets`.
    """
    return _frechet(*feature_sets(reference, candidate))


def _is_wide(a: Tensor, b: Tensor) -> bool:
    """Whether some hundred more distances would take minutes."""
    return min(len(a), len(b), a.shape[1]) > _WIDEST


def fid_error(reference: Tensor, candidate: Tensor) -> float | None:
    """Standard error of `fid`, by leaving out a tenth of the samples at a time (jackknife).

    It is the sampling error alone: the upward bias of small N comes on top.

    Args:
        reference: see `fid`.
        candidate: see `fid`.

    Returns:
        None where there are too few samples to leave a tenth out, or where the features are so
        wide that ten more distances would take minutes.

    Raises:
        UsageError: see `feature_sets`.
    """
    a, b = feature_sets(reference, candidate)
    if _is_wide(a, b) or min(len(a), len(b)) < FEWEST + 2:
        return None
    found = []
    for group in range(_GROUPS):
        parts = [x[torch.arange(len(x)) % _GROUPS != group] for x in (a, b)]
        if min(len(part) for part in parts) < FEWEST:
            return None
        found.append(_frechet(parts[0], parts[1]))
    values = torch.tensor(found, dtype=torch.float64)
    return float(((values - values.mean()) ** 2).sum().mul((_GROUPS - 1) / _GROUPS).sqrt())


def interval(value: float, draws: Tensor) -> tuple[float, float]:
    """Where 95 % of the values lie that as many other samples would give.

    Sets that are drawn again from a set hold some samples twice, and are farther apart by that
    alone. So only the spread of the draws is used, around the value itself.

    Args:
        value: of the samples.
        draws: the same of samples drawn from them with replacement.
    """
    ends = torch.quantile(draws - draws.mean(), torch.tensor(_ENDS, dtype=draws.dtype))
    return value + float(ends[0]), value + float(ends[1])


def fid_interval(reference: Tensor, candidate: Tensor) -> tuple[float, float] | None:
    """The 95 % interval of `fid` by bootstrap (Efron 1979), from 200 draws.

    It is the sampling error alone: the upward bias of small N comes on top.

    Args:
        reference: see `fid`.
        candidate: see `fid`.

    Returns:
        None where the draws would take minutes.

    Raises:
        UsageError: see `feature_sets`.
    """
    a, b = feature_sets(reference, candidate)
    if _is_wide(a, b):
        return None
    random = torch.Generator().manual_seed(0)
    found = []
    for _ in range(DRAWS):
        drawn = [x[torch.randint(len(x), (len(x),), generator=random)] for x in (a, b)]
        found.append(_frechet(drawn[0], drawn[1]))
    low, high = interval(_frechet(a, b), torch.tensor(found, dtype=torch.float64))
    return max(0.0, low), high


def estimate(reference: Tensor, candidate: Tensor) -> Estimate:
    """`fid` with its standard error and interval.

    Raises:
        UsageError: see `feature_sets`.
    """
    both = reference, candidate
    return Estimate(fid(*both), fid_error(*both), fid_interval(*both))


def _register(key: str, title: str, about: str, *needs: Need) -> None:
    metric = Metric(
        key=key,
        title=title,
        unit=Unit.NUMBER,
        better=Better.LOWER,
        about=f"Fréchet distance of features to {about}; 95 % interval by bootstrap",
        run=estimate,
        per=Per.SET,
        needs=(Need.PICTURES, Need.FEATURES, *needs),
        format=lambda value: f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}",
        shown=Shown.FILE,
        fewest=FEWEST,
        enough=FEW,
        few=FEW_WORDS,
    )
    register(metric)


_register("fid_dense", "FID dense", "the dense outputs, 0 is equal")
_register("fid_real", "FID real", "real samples; compare with dense's row", Need.REFERENCE)
