"""FLIP, a perceptual difference of picture pairs that needs no weights (Andersson et al. 2020)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ditaccel.errors import UsageError

from .base import Better, Metric, Shown, Unit, register
from .frames import frame_pair

HOW = "pip install flip-evaluator"


def flip(reference: Any, candidate: Any) -> float:
    """Mean FLIP error over frames: 0 identical, 1 worst, at 67 pixels per degree.

    Args:
        reference: frames (F, H, W, 3), uint8 or float in [0, 1] (sRGB).
        candidate: the same shape.

    Raises:
        UsageError: shapes differ, a value is not finite, or `flip-evaluator` is missing.
    """
    try:
        from flip_evaluator import evaluate
    except ImportError as error:
        raise UsageError(f"FLIP needs the package flip-evaluator: {HOW}") from error
    a, b = frame_pair(reference, candidate)
    errors = []
    for one, other in zip(a, b, strict=True):
        pair = [
            np.ascontiguousarray(x.permute(1, 2, 0).clamp(0, 1).numpy(), dtype=np.float32)
            for x in (one, other)
        ]
        _, mean, _ = evaluate(*pair, "LDR", inputsRGB=True, applyMagma=False)
        errors.append(float(mean))
    return float(np.mean(errors))


register(
    Metric(
        key="flip",
        title="FLIP",
        unit=Unit.NUMBER,
        better=Better.LOWER,
        about="perceived difference to dense, 0 is equal",
        run=flip,
        package="flip_evaluator",
        how=HOW,
        shown=Shown.FILE,
    )
)
