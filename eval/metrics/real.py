"""Real pictures and clips that the user hands in, for distances to real data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ditaccel.errors import UsageError
from ditaccel.io import given

HOW = "needs real pictures or clips of what the prompts describe (option `real`: a folder or npz)"
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def load_real(path: str | Path, limit: int | None = None) -> list[np.ndarray]:
    """Real samples as uint8 frames (F, H, W, 3).

    Args:
        path: an npz with `frames` (or `arr_0`), uint8 (N, F, H, W, 3) or (N, H, W, 3), or a folder
            of pictures and of such npz files with one sample each.
        limit: the first so many.

    Raises:
        UsageError: nothing there, or damaged.
    """
    path = given.path(path)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in (*_PICTURES, ".npz"))
        found = [_real_file(p) for p in (files[:limit] if limit else files)]
    elif path.is_file():
        frames = _npz(path)
        if frames.ndim not in (4, 5):
            raise UsageError(f"{path}: frames must be (N, F, H, W, 3) or (N, H, W, 3)", "real")
        found = list(frames[:limit] if limit else frames)
    else:
        raise UsageError(f"{path}: no such file or folder", "real")
    if len(found) < 2:
        raise UsageError(f"{path}: {len(found)} sample(s); a distribution needs at least 2", "real")
    return [f[None] if f.ndim == 3 else f for f in found]


def _npz(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as data:
            # `arr_0` is how reference batches of ImageNet are packed (Dhariwal and Nichol 2021)
            frames: np.ndarray = data["frames" if "frames" in data else "arr_0"]
    except Exception as error:
        # zipfile, zlib and numpy each have their own idea of a broken file.
        raise UsageError(f"{path}: not an npz with an array `frames`", "real") from error
    if frames.dtype != np.uint8:
        raise UsageError(f"{path}: frames must be uint8, got {frames.dtype}", "real")
    return frames


def _real_file(path: Path) -> np.ndarray:
    if path.suffix == ".npz":
        return _npz(path)
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise UsageError(f"{path}: not a readable picture", "real") from error
