"""Structural similarity (Wang et al. 2004, Gaussian window of 11 × 11)."""

from __future__ import annotations

from typing import Any

import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from .frames import frame_pair


def ssim(reference: Any, candidate: Any) -> float:
    """Mean SSIM over frames, 1 for identical ones.

    Frames are folded into the batch: a 3-D window over time would need six frames and mix motion
    into a measure that is meant per picture.

    Args:
        reference: frames (F, H, W, 3), uint8 or float in [0, 1].
        candidate: the same shape.

    Raises:
        UsageError: shapes differ, or a value is not finite.
    """
    a, b = frame_pair(reference, candidate)
    return float(torch.as_tensor(structural_similarity_index_measure(b, a, data_range=1.0)))
