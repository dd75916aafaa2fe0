"""The distance of colour histograms against scipy and by hand."""

import numpy as np
import pytest
from ditaccel.eval.metrics.histogram import histogram_distance
from scipy.stats import wasserstein_distance

A, B = (np.random.default_rng(s).integers(0, 200, (2, 9, 7, 3)).astype(np.uint8) for s in (0, 1))


def test_it_is_the_mean_of_the_channels_earth_movers_distances() -> None:
    b = (B // 2 + 60).astype(np.uint8)
    pairs = [(A[f, ..., c].ravel(), b[f, ..., c].ravel()) for f in range(2) for c in range(3)]
    expected = np.mean([wasserstein_distance(*pair) for pair in pairs])
    assert histogram_distance(A, b) == pytest.approx(expected)


def test_a_shift_counts_its_levels_and_places_count_nothing() -> None:
    assert histogram_distance(A, A + np.uint8(17)) == pytest.approx(17)
    assert histogram_distance(A, A[:, ::-1, ::-1]) == 0.0
    # two frames that trade places are two wrong frames
    assert histogram_distance(A, A[::-1]) > 1
