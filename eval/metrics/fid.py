"""Fréchet distance between two sets of features (Heusel et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from ditaccel.errors import UsageError

FEW = 1000


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
        UsageError: wrong shape, fewer than two samples, or NaN (it would make the distance NaN).
    """
    for name, features in (("reference", reference), ("candidate", candidate)):
        if features.ndim != 2 or features.shape[1] == 0:
            raise UsageError(f"{name} features must be (N, D), got {tuple(features.shape)}")
        if len(features) < 2:
            raise UsageError(
                f"{name}: {len(features)} sample(s); a distribution needs at least 2 "
                "(more prompts or seeds)"
            )
        if not torch.isfinite(features).all():
            raise UsageError(f"{name} features hold NaN or infinity")
    if reference.shape[1] != candidate.shape[1]:
        raise UsageError(
            f"features differ in width ({reference.shape[1]} and {candidate.shape[1]}): "
            "both sets need the same extractor"
        )
    return reference.double(), candidate.double()


def few_samples_note(count: int) -> str | None:
    """A warning where so few samples make the distance biased upwards, else None."""
    if count >= FEW:
        return None
    return f"N={count} < {FEW}: biased upwards; compare only rows of the same N"


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
    a, b = feature_sets(reference, candidate)
    metric = FrechetInceptionDistance(feature=Identity(a.shape[1]), normalize=True)
    metric.set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    # Rounding leaves ±1e-12 for equal sets; a distance is not negative.
    return max(0.0, float(metric.compute()))
