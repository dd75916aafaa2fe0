"""Frames as the metrics take them: checked, never wrapped, never silently cut to the shorter."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditaccel.errors import UsageError


def to_frames(value: Any, name: str = "frames") -> Tensor:
    """One sample as float64 frames in [0, 1].

    Args:
        value: (F, H, W, 3) or (H, W, 3), array or tensor; uint8 in [0, 255] or float in [0, 1].
        name: what to call it in an error.

    Returns:
        Tensor (F, 3, H, W), float64, on the CPU.

    Raises:
        UsageError: wrong shape or dtype, no frames, NaN or infinity, or values outside [0, 1].
    """
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise UsageError(
            f"{name}: expected RGB frames of shape (F, H, W, 3), got {tuple(array.shape)}"
        )
    if array.dtype == np.uint8:
        # The cast comes before any subtraction: uint8 wraps, and 0 - 1 would count as 255.
        array = array.astype(np.float64) / 255.0
    elif np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float64)
        if not np.isfinite(array).all():
            raise UsageError(f"{name}: holds NaN or infinity; a broken picture has no quality")
        if array.min() < -1e-6 or array.max() > 1 + 1e-6:
            raise UsageError(
                f"{name}: float frames must lie in [0, 1], "
                f"got [{array.min():.3g}, {array.max():.3g}]"
            )
    else:
        raise UsageError(f"{name}: expected uint8 or float frames, got {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def frame_pair(reference: Any, candidate: Any) -> tuple[Tensor, Tensor]:
    """Two samples to compare, as `to_frames` gives them.

    Raises:
        UsageError: either is unusable, or their frame counts or sizes differ.
    """
    a, b = to_frames(reference, "reference"), to_frames(candidate, "candidate")
    if a.shape != b.shape:
        raise UsageError(
            f"reference and candidate differ in size: {tuple(a.shape)} and {tuple(b.shape)} "
            "(frames, channels, height, width)"
        )
    return a, b
