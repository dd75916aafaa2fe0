"""Structural similarity (Wang et al. 2004, Gaussian window of 11 × 11)."""

from __future__ import annotations

from typing import Any

import torch

from ditaccel.errors import UsageError

from .base import Better, Metric, Shown, Unit, register
from .frames import frame_pair

# Half of the window is mirrored at each edge.
_LEAST = 6


def ssim(reference: Any, candidate: Any) -> float:
    """Mean SSIM over frames, 1 for identical ones.

    Frames are folded into the batch: a 3-D window over time would need six frames and mix motion
    into a measure that is meant per picture.

    Args:
        reference: frames (F, H, W, 3), uint8 or float in [0, 1].
        candidate: the same shape.

    Raises:
        UsageError: shapes differ, frames are too small, or a value is not finite.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = frame_pair(reference, candidate)
    if min(a.shape[-2:]) < _LEAST:
        raise UsageError(
            f"SSIM needs frames of at least {_LEAST} x {_LEAST} pixels, got {a.shape[-1]} x "
            f"{a.shape[-2]}: its window has 11, mirrored at the edges"
        )
    return float(torch.as_tensor(structural_similarity_index_measure(b, a, data_range=1.0)))


register(
    Metric(
        key="ssim",
        title="SSIM",
        unit=Unit.NUMBER,
        better=Better.HIGHER,
        about="structural similarity to dense, 1 is equal",
        run=ssim,
        package="torchmetrics",
        how="pip install 'ditaccel[eval]'",
        shown=Shown.FILE,
    )
)
