"""MS-SSIM against a second writing of Wang et al. 2003 with scipy."""

import numpy as np
import pytest
from ditaccel.eval.metrics.ms_ssim import LEAST, ms_ssim
from scipy.signal import convolve2d

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def written_again(a: np.ndarray, b: np.ndarray) -> float:
    """Of two planes (H, W) in [0, 1]."""
    x = np.arange(11) - 5
    line = np.exp(-(x**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    result = 1.0
    for scale, weight in enumerate(WEIGHTS):
        ma, mb, aa, bb, ab = (
            convolve2d(plane, window, "valid") for plane in (a, b, a * a, b * b, a * b)
        )
        contrast = (2 * (ab - ma * mb) + 0.03**2) / (aa - ma**2 + bb - mb**2 + 0.03**2)
        bright = (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
        last = scale == len(WEIGHTS) - 1
        result *= float((bright * contrast if last else contrast).mean()) ** weight
        a, b = (p[: len(p) // 2 * 2, : p.shape[1] // 2 * 2] for p in (a, b))
        a, b = ((p[::2, ::2] + p[1::2, ::2] + p[::2, 1::2] + p[1::2, 1::2]) / 4 for p in (a, b))
    return result


def test_it_equals_a_second_writing() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:LEAST, 0:190] / 176
    plane = 0.5 + 0.3 * np.sin(9 * x + 5 * y)
    noisy = np.clip(plane + rng.normal(0, 0.08, plane.shape), 0, 1)
    a, b = (np.repeat(p[None, ..., None], 3, -1) for p in (plane, noisy))
    assert ms_ssim(a, b) == pytest.approx(written_again(plane, noisy), abs=2e-3)
    assert ms_ssim(a, a) == pytest.approx(1.0, abs=1e-6)
    assert written_again(plane, noisy) < 0.95


def test_small_frames_have_no_answer() -> None:
    small = np.zeros((1, LEAST - 1, 200, 3), np.uint8)
    assert ms_ssim(small, small) is None
