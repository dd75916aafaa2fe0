"""How near a generation is to dense, in dB, and what many of them come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import UsageError
from ..io.frames import MOST_PSNR, psnr

__all__ = ["MOST_PSNR", "STATISTICS", "as_bytes", "doubt_of", "level_of", "psnrs", "surely"]
STATISTICS = ("mean", "p10", "min")


def level_of(levels: Sequence[float], statistic: str) -> float:
    """What the levels of several samples come to: their mean, 10th percentile or minimum."""
    if statistic == "p10":
        return float(np.percentile(levels, 10))
    return min(levels) if statistic == "min" else float(np.mean(levels))


def doubt_of(levels: Sequence[float], statistic: str) -> float:
    """Standard error of the mean of several samples; 0 for other statistics and for one sample.

    Whether a sample comes out alike or with something else drawn is often either or (45 dB or
    20 dB), so a mean of a few samples says little about the mean of others.
    """
    if statistic != "mean" or len(levels) < 2:
        return 0.0
    return float(np.std(levels, ddof=1)) / len(levels) ** 0.5


def surely(levels: Sequence[float], statistic: str) -> float:
    """What a level is compared with a target by: less its standard error."""
    return level_of(levels, statistic) - doubt_of(levels, statistic)


def as_bytes(pictures: Any) -> np.ndarray:
    """Decoded output as uint8, `(B, …)`: what people see, and a quarter of the memory."""
    array = np.asarray(pictures)
    if not np.isfinite(array).all():
        raise UsageError("a generation came out with NaN or infinity; check weights and dtype")
    return np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)


def psnrs(result: np.ndarray, dense: np.ndarray) -> list[float]:
    """PSNR of each sample in dB."""
    return [psnr(ours, theirs) for ours, theirs in zip(result, dense, strict=True)]
