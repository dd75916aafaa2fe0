"""Peak signal-to-noise ratio in dB, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ditaccel.errors import UsageError

from .frames import frame_pair

CAP = 99.0


def from_mse(mse: float) -> float:
    """PSNR of a mean squared error over values in [0, 1]; `CAP` where there is no error."""
    if not math.isfinite(mse) or mse < 0:
        raise UsageError(f"a mean squared error must be finite and >= 0, got {mse}")
    return CAP if mse == 0 else min(CAP, -10.0 * math.log10(mse))


def mean_squared_error(reference: Any, candidate: Any) -> float:
    """Mean squared error over all values of a sample, values in [0, 1]."""
    a, b = frame_pair(reference, candidate)
    return float(((a - b) ** 2).mean())


def pooled(errors: Sequence[float]) -> float:
    """PSNR of the mean of several samples' squared errors (what a mean of PSNRs hides)."""
    if not errors:
        raise UsageError("pooled PSNR needs at least one sample")
    return from_mse(sum(errors) / len(errors))


def psnr(reference: Any, candidate: Any) -> float:
    """Mean over frames of the PSNR of each frame.

    Args:
        reference: frames (F, H, W, 3), uint8 or float in [0, 1].
        candidate: the same shape.

    Returns:
        dB; identical frames count as `CAP`, so that a mean stays finite.

    Raises:
        UsageError: shapes differ, or a value is not finite.
    """
    a, b = frame_pair(reference, candidate)
    # By hand, not by torchmetrics: that takes its logarithm of the range in float32.
    errors = ((a - b) ** 2).mean(dim=(1, 2, 3)).tolist()
    return sum(from_mse(error) for error in errors) / len(errors)
