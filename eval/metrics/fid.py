"""Fréchet distance between two sets of features (Heusel et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ditaccel.errors import UsageError

from .base import Better, Estimate, Metric, Need, Per, Shown, Unit, register

# Between two sets of real pictures the distance is still far from 0 below so many.
FEW = 1000
FEW_WORDS = "biased upwards, so compare rows of the same number of samples only"
# Below, a covariance or a kernel mean tells of the number of samples and of nothing else.
FEWEST = 10
_GROUPS = 10
_WIDEST = 512


class Identity(nn.Module):
    """Hands features through, so that torchmetrics' accumulators serve any extractor."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, D) as they came."""
        return features


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
    from torchmetrics.image.fid import FrechetInceptionDistance

    a, b = feature_sets(reference, candidate)
    metric = FrechetInceptionDistance(feature=Identity(a.shape[1]), normalize=True)
    metric.set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    # Rounding leaves ±1e-12 for equal sets; a distance is not negative.
    return max(0.0, float(metric.compute()))


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
    if a.shape[1] > _WIDEST or min(len(a), len(b)) < FEWEST + 2:
        return None
    found = []
    for group in range(_GROUPS):
        parts = [x[torch.arange(len(x)) % _GROUPS != group] for x in (a, b)]
        if min(len(part) for part in parts) < FEWEST:
            return None
        found.append(fid(*parts))
    values = torch.tensor(found, dtype=torch.float64)
    return float(((values - values.mean()) ** 2).sum().mul((_GROUPS - 1) / _GROUPS).sqrt())


def _estimate(reference: Tensor, candidate: Tensor) -> Estimate:
    return Estimate(fid(reference, candidate), fid_error(reference, candidate))


def _register(key: str, title: str, about: str, *needs: Need) -> None:
    metric = Metric(
        key=key,
        title=title,
        unit=Unit.NUMBER,
        better=Better.LOWER,
        about=f"Fréchet distance of features to {about}; ± one standard error",
        run=_estimate,
        per=Per.SET,
        package="torchmetrics",
        how="pip install 'ditaccel[eval]'",
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
