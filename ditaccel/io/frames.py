"""Decoded output of a pipeline as uint8 frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..errors import DitaccelError, UsageError


class NonFiniteError(DitaccelError):
    """A generation came out with NaN or infinity."""


MOST_PSNR = 99.0


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """PSNR of two uint8 arrays of one shape (F, …) in dB, `MOST_PSNR` where they are equal."""
    # frame by frame: a clip in float64 would be gigabytes
    squares = [np.square(a.astype(np.int32) - b).sum() for a, b in zip(ours, theirs, strict=True)]
    error = float(sum(squares)) / theirs.size
    return MOST_PSNR if error == 0 else min(MOST_PSNR, 10 * float(np.log10(255.0**2 / error)))


def to_uint8(value: Any) -> np.ndarray:
    """Decoded output of a pipeline as uint8 frames (F, H, W, 3).

    Args:
        value: `images` (1, H, W, 3) or `frames` (1, F, H, W, 3) in [0, 1], arrays or tensors.

    Raises:
        NonFiniteError: NaN or infinity in it.
        UsageError: not RGB frames (latents, or an output type that is not "np").
    """
    array = value.detach().float().cpu().numpy() if isinstance(value, torch.Tensor) else value
    array = np.asarray(array)
    if array.ndim == 5 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 4 or array.shape[-1] != 3 or not np.issubdtype(array.dtype, np.floating):
        raise UsageError(
            f"the pipeline gave {array.dtype} of shape {tuple(array.shape)}, not RGB frames: "
            "decoded pictures are needed (a VAE, output_type 'np')"
        )
    if not np.isfinite(array).all():
        bad = float((~np.isfinite(array)).mean())
        raise NonFiniteError(f"output not finite: NaN or infinity in {bad:.1%} of the values")
    return np.round(np.clip(array, 0.0, 1.0) * 255.0).astype(np.uint8)
