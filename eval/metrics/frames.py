"""Frames as the metrics take them: whatever users have, never wrapped, never silently cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditaccel.errors import UsageError

_CHANNELS = (1, 3, 4)  # gray, RGB, RGBA
_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_SLACK = 1e-6
# bf16 has 8 bits: rounding may leave it that far outside.
_SLACK_OF_HALF = 1 / 128


def to_frames(value: Any, name: str = "frames") -> Tensor:
    """One sample as float64 frames in [0, 1].

    Args:
        value: a PIL picture of any mode, an array or tensor, or a list of those (a clip). Arrays
            are (H, W), (H, W, C) or (C, H, W), with frames before it (F, …), or a batch of one
            before that (1, F, …); C is 1 (gray), 3 (RGB) or 4 (RGBA, laid on white). Of two
            readings the one with the channels last is taken. uint8, uint16 and bool by their own
            range, floats of any width in [0, 1].
        name: what to call it in an error.

    Returns:
        Tensor (F, 3, H, W), float64, on the CPU.

    Raises:
        UsageError: another shape or dtype, no frames, several samples, frames of several sizes, NaN
            or infinity, or values outside the range.
    """
    array = _array(value, name)
    while array.ndim >= 5 and array.shape[0] == 1:
        array = array[0]
    if array.ndim >= 5:
        raise UsageError(
            f"{name}: {array.shape[0]} samples of shape {tuple(array.shape[1:])}; give one at a "
            "time, as (F, H, W, 3)"
        )
    array = _channels_last(array, name)
    if 0 in array.shape:
        raise UsageError(f"{name}: no RGB frames in it, its shape is {tuple(array.shape)}")
    array = _rgb(array)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def _array(value: Any, name: str) -> np.ndarray:
    """Any value as float64 in [0, 1], its shape as it came."""
    if isinstance(value, (list, tuple)) and not _is_numbers(value):
        if not value:
            raise UsageError(f"{name}: an empty list holds no frames")
        parts = [_array(part, name) for part in value]
        shapes = list(dict.fromkeys(part.shape for part in parts))
        if len(shapes) > 1:
            raise UsageError(
                f"{name}: frames of different sizes in one sample, {shapes[0]} and {shapes[1]}; "
                "judge samples one by one"
            )
        return np.stack(parts)
    if hasattr(value, "getbands"):
        return _picture(value, name)
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        slack = _SLACK_OF_HALF if tensor.dtype == torch.bfloat16 else _SLACK
        if tensor.is_floating_point():
            return _unit(tensor.double().numpy(), name, slack)
        value = tensor.numpy()
    array = np.asarray(value)
    if array.dtype == bool:
        return array.astype(np.float64)
    if array.dtype in (np.uint8, np.uint16):
        # The cast comes before any subtraction: uint8 wraps, and 0 - 1 would count as 255.
        return array.astype(np.float64) / np.iinfo(array.dtype).max
    if not np.issubdtype(array.dtype, np.floating):
        raise UsageError(f"{name}: expected uint8 or float frames, got {array.dtype}")
    return _unit(array.astype(np.float64), name, _SLACK)


def _is_numbers(value: Any) -> bool:
    """Whether nested lists hold plain numbers, which numpy reads by itself."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return isinstance(value, (int, float, bool))


def _unit(array: np.ndarray, name: str, slack: float) -> np.ndarray:
    if array.size and not np.isfinite(array).all():
        raise UsageError(f"{name}: holds NaN or infinity; a broken picture has no quality")
    if array.size and (array.min() < -slack or array.max() > 1 + slack):
        raise UsageError(
            f"{name}: float frames must lie in [0, 1], got [{array.min():.3g}, {array.max():.3g}]"
        )
    return np.clip(array, 0.0, 1.0)


def _rgb(array: np.ndarray) -> np.ndarray:
    """Gray, RGB or RGBA with the channels last as RGB."""
    if array.shape[-1] == 4:  # what lies under transparent pixels is not to be seen
        return array[..., :3] * array[..., 3:] + (1.0 - array[..., 3:])
    return array.repeat(3, axis=-1) if array.shape[-1] == 1 else array


def _picture(picture: Any, name: str) -> np.ndarray:
    """A PIL picture, (H, W, 3)."""
    mode = picture.mode
    try:
        if mode in _16_BIT:  # `convert` would cut it off at 255
            array = np.asarray(picture).astype(np.float64) / 65535.0
        elif mode == "F":
            array = np.asarray(picture).astype(np.float64)
        else:
            if mode in ("1", "L"):
                kind = "L"
            else:
                clear = "A" in picture.getbands() or "a" in mode or "transparency" in picture.info
                kind = "RGBA" if clear else "RGB"
            array = np.asarray(picture.convert(kind)).astype(np.float64) / 255.0
    except (OSError, ValueError) as error:
        line = str(error).split("\n")[0]
        raise UsageError(f"{name}: a picture of mode {mode} cannot be read ({line})") from None
    return _rgb(_unit(array if array.ndim == 3 else array[..., None], name, _SLACK))


def _channels_last(array: np.ndarray, name: str) -> np.ndarray:
    """As (F, H, W, C)."""
    shape = tuple(array.shape)
    if array.ndim == 2:
        return array[None, :, :, None]
    if array.ndim in (3, 4):
        if shape[-1] in _CHANNELS:
            return array if array.ndim == 4 else array[None]
        if shape[-3] in _CHANNELS:
            moved = np.moveaxis(array, -3, -1)
            return moved if array.ndim == 4 else moved[None]
        if array.ndim == 3:
            return array[..., None]
    raise UsageError(f"{name}: expected RGB frames of shape (F, H, W, 3), got {shape}")


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
