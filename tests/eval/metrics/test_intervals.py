"""Distances of sets against torchmetrics, and how often their intervals hold."""

import numpy as np
import pytest
import torch
from ditaccel.eval.metrics.fid import fid, fid_interval
from ditaccel.eval.metrics.kid import kid, kid_interval
from torch import nn


class Through(nn.Module):
    num_features = 6

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


@pytest.mark.parametrize("count", [40, 11])
def test_fid_equals_torchmetrics(count) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=generator).double()
    a = torch.randn(count, 6, generator=generator).double() @ mix
    b = torch.randn(30, 6, generator=generator).double() + 0.5
    theirs = FrechetInceptionDistance(feature=Through(), normalize=True)
    theirs.set_dtype(torch.float64)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    assert fid(a, b) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_fid_with_fewer_samples_than_channels() -> None:
    """All is in the span of the samples: a rotation into more channels changes nothing."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(12, 5, generator=generator).double() for _ in range(2))
    wide = torch.linalg.qr(torch.randn(40, 5, generator=generator).double()).Q
    assert fid(a @ wide.T, b @ wide.T) == pytest.approx(fid(a, b), rel=1e-9)


def draws(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = torch.randn(50, 3, generator=generator), torch.randn(60, 3, generator=generator)
    return a, 1.3 * b + 0.5


@pytest.mark.parametrize(("distance", "bounds"), [(fid, fid_interval), (kid, kid_interval)])
def test_intervals_hold_what_other_samples_give_on_average(distance, bounds) -> None:
    generator = torch.Generator().manual_seed(7)
    expected = float(np.mean([distance(*draws(generator)) for _ in range(100)]))
    found = [bounds(*draws(generator)) for _ in range(30)]
    held = np.mean([low <= expected <= high for low, high in found])
    # of 40 intervals of 95 %, fewer than 33 hold it once in 5000 times
    assert held >= 33 / 40
    narrow = np.median([high - low for low, high in found])
    assert narrow < 3 * expected
    a, b = draws(generator)
    assert bounds(a, b) == bounds(a, b)


def test_large_sets_have_the_normal_interval(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = draws(generator)
    low, high = kid_interval(a, b)
    monkeypatch.setattr("ditaccel.eval.metrics.kid._MOST", 20)
    other = kid_interval(a, b)
    assert other[1] - other[0] == pytest.approx(high - low, rel=0.3)
    assert other == pytest.approx((low, high), abs=0.3 * (high - low))


def test_wide_features_have_no_interval() -> None:
    wide = torch.randn(600, 600, generator=torch.Generator().manual_seed(0))
    assert fid_interval(wide, wide + 1) is None
