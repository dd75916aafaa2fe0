"""Peak signal-to-noise ratio in dB, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ditaccel.errors import UsageError

from .base import SAME, Better, Figure, Metric, Shown, Unit, Values, register
from .frames import frame_pair

CAP = 99.0
# Two pictures of the same scene, a little apart, do not fall below; another picture does.
KEPT_DB = 25.0
# Of fewer samples the 5th percentile is as good as the worst.
_TAIL = 20


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


def written(value: float) -> str:
    """A PSNR as text."""
    return "identical" if value >= CAP else f"{value:.1f}"


def _of(samples: Sequence[Values]) -> list[float]:
    return [float(values["psnr"]) for values in samples]


def _kept(samples: Sequence[Values]) -> float:
    """Share of the samples near dense's, or in which the judge sees the same."""
    kept = [float(v["psnr"]) >= KEPT_DB or v.get(SAME) is True for v in samples]
    return float(np.mean(kept))


register(
    Metric(
        key="psnr",
        title="PSNR",
        unit=Unit.DB,
        better=Better.HIGHER,
        about=f"dB to dense with the same seed, mean of the frames (identical counts as {CAP:g})",
        run=psnr,
        essential=True,
        figures=(
            Figure(
                name="mean",
                title="PSNR mean",
                about=f"dB to dense with the same seed, mean of the samples (identical counts as "
                f"{CAP:g})",
                of=lambda samples: float(np.mean(_of(samples))),
                format=written,
            ),
            Figure(
                name="median",
                title="median",
                about="PSNR, median of the samples",
                of=lambda samples: float(np.median(_of(samples))),
                format=written,
            ),
            Figure(
                name="kept",
                title="kept",
                about=f"share of samples that stay the same picture: PSNR of {KEPT_DB:g} dB or "
                "more, or the model's judge sees the same things in the same places",
                of=_kept,
                unit=Unit.SHARE,
            ),
            Figure(
                name="p5",
                title="p5",
                about="PSNR, 5th percentile",
                of=lambda samples: float(np.percentile(_of(samples), 5)),
                format=written,
                shown=Shown.FILE,
                enough=_TAIL,
                few="it is close to the worst sample",
            ),
            Figure(
                name="min",
                title="worst",
                about="PSNR of the worst sample",
                of=lambda samples: min(_of(samples)),
                format=written,
            ),
            Figure(
                name="pooled",
                title="pooled",
                about="PSNR of the mean squared error of all",
                of=lambda samples: pooled([values["mse"] for values in samples]),
                format=written,
                shown=Shown.PAGE,
            ),
            Figure(
                name="identical",
                title="identical",
                about="samples that equal dense bit for bit",
                of=lambda samples: sum(values["identical"] for values in samples),
                unit=Unit.COUNT,
                shown=Shown.PAGE,
            ),
        ),
    )
)
register(
    Metric(
        key="psnr_pooled",
        title="PSNR pooled",
        unit=Unit.DB,
        better=Better.HIGHER,
        about="PSNR of the mean squared error of all frames of a sample",
        run=lambda reference, frames: from_mse(mean_squared_error(reference, frames)),
        figures=(),
    )
)
register(
    Metric(
        key="mse",
        title="MSE",
        unit=Unit.NUMBER,
        better=Better.LOWER,
        about="mean squared error, values in [0, 1]",
        run=mean_squared_error,
        essential=True,
        figures=(),
    )
)
register(
    Metric(
        key="identical",
        title="identical",
        unit=Unit.FLAG,
        better=Better.HIGHER,
        about="whether a sample equals dense bit for bit",
        run=np.array_equal,
        essential=True,
        figures=(),
    )
)
