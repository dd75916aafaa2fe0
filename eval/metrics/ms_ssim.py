"""Structural similarity on five scales (Wang et al. 2003)."""

from __future__ import annotations

from typing import Any

import torch

from .base import Better, Metric, Shown, Unit, register
from .frames import frame_pair

# The window of 11 pixels must fit into frames that were halved four times and stay whole.
LEAST = 176


def ms_ssim(reference: Any, candidate: Any) -> float | None:
    """Mean MS-SSIM over frames, 1 for identical ones.

    Args:
        reference: frames (F, H, W, 3), uint8 or float in [0, 1].
        candidate: the same shape.

    Returns:
        None for frames with a side below `LEAST` pixels: fewer scales would be another measure.

    Raises:
        UsageError: shapes differ, or a value is not finite.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    a, b = frame_pair(reference, candidate)
    if min(a.shape[-2:]) < LEAST:
        return None
    return float(
        torch.as_tensor(multiscale_structural_similarity_index_measure(b, a, data_range=1.0))
    )


register(
    Metric(
        key="ms_ssim",
        title="MS-SSIM",
        unit=Unit.NUMBER,
        better=Better.HIGHER,
        about=f"structural similarity to dense on five scales, 1 is equal; frames of {LEAST} × "
        f"{LEAST} pixels or more",
        run=ms_ssim,
        package="torchmetrics",
        how="pip install 'ditaccel[eval]'",
        shown=Shown.PAGE,
    )
)
