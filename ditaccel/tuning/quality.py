"""How near a generation is to dense, in dB, and what many of them come to."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError, UsageError
from ..io.frames import MOST_PSNR, psnr
from ..io.given import suggest

__all__ = [
    "MOST_PSNR",
    "PSNR",
    "STATISTICS",
    "Measure",
    "as_bytes",
    "doubt_of",
    "level_of",
    "measure_of",
    "psnrs",
    "surely",
]
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


@dataclass(frozen=True)
class Measure:
    """How near one sample is to its dense one.

    Attributes:
        key: its name, as a target has it.
        higher: whether more is better.
        run: takes the dense sample and the other one, uint8 `(F, H, W, 3)` or `(H, W, 3)`.
        unit: behind a level, with a space before it; empty for none.
        weights: file or folder of the metric's weights; empty for none.
    """

    key: str
    higher: bool
    run: Callable[[np.ndarray, np.ndarray], float]
    unit: str = ""
    weights: str = ""

    @property
    def stored(self) -> str:
        """The name under which levels are kept: those of other weights are others."""
        return f"{self.key} by {self.weights}" if self.weights else self.key

    def level(self, levels: Sequence[float], statistic: str) -> float:
        """What samples come to: `p10` and `min` are of the bad end, whichever that is."""
        sign = 1.0 if self.higher else -1.0
        return sign * level_of([sign * level for level in levels], statistic)

    def surely(self, levels: Sequence[float], statistic: str) -> float:
        """What is compared with a target: a mean is worse by its standard error."""
        sign = 1.0 if self.higher else -1.0
        return sign * surely([sign * level for level in levels], statistic)

    def reaches(self, level: float, wanted: float) -> bool:
        """Whether a level is as good as what is wanted."""
        return level >= wanted if self.higher else level <= wanted

    def shown(self, level: float) -> str:
        """A level in words."""
        return f"{level:.1f}{self.unit}" if self.unit else f"{level:.4g}"


PSNR = Measure("psnr", True, lambda dense, result: psnr(result, dense), " dB")


def measure_of(key: str, weights: str = "") -> Measure:
    """The measure of a name: PSNR, or a registered metric of single samples.

    Args:
        key: of the metric.
        weights: file or folder of its weights, where it needs some.

    Raises:
        ConfigError: there is no such metric, or it needs more than two samples and its weights.
        UsageError: its weights or a package are missing.
    """
    if key == PSNR.key:
        return PSNR
    # By name: metrics are in a room above this one, and nothing else here needs them.
    base = importlib.import_module("ditaccel.eval.metrics.base")
    known = {metric.key: metric for metric in base.metrics()}
    if key not in known:
        raise ConfigError(f"there is no metric {key!r}{suggest(key, known)}")
    metric = known[key]
    needs = set(metric.needs) - {base.Need.PICTURES, base.Need.WEIGHTS}
    if metric.per is not base.Per.SAMPLE or needs or metric.better is base.Better.NONE:
        raise ConfigError(
            f"{key} cannot be a target: a target compares each sample with its dense one, by a "
            "number of which more, or less, is better; use psnr or ssim, for example"
        )
    if metric.load is not None and not weights:
        raise ConfigError(f"{key} needs weights: name them in the target ({metric.how})")
    run = metric.run if metric.load is None else metric.load(weights)
    assert run is not None

    def measured(dense: np.ndarray, result: np.ndarray) -> float:
        frames = [a if a.ndim == 4 else a[None] for a in (dense, result)]
        value = run(*frames)
        if value is None:
            raise UsageError(f"{key} has no answer for a sample; use another metric as target")
        return float(value)

    return Measure(key, metric.better is base.Better.HIGHER, measured, weights=weights)
