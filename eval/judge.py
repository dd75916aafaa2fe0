"""The metrics of one run: which are available, why others are not, and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ditaccel.errors import UsageError
from ditaccel.io import given
from ditaccel.io.models import Sheet, class_label

from .comparison.sampler import Sample
from .metrics import extractors, flip, lpips
from .metrics.psnr import from_mse, mean_squared_error, psnr
from .metrics.ssim import ssim
from .shapes import accuracy

if TYPE_CHECKING:
    from .options import Options

REAL_HOW = (
    "give --real FOLDER_OR_NPZ: real pictures or clips of what the prompts describe (for the "
    "shapes samples, in a clone: python -m ditaccel.eval.shapes.real_shapes)"
)
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def load_real(path: str | Path, limit: int | None = None) -> list[np.ndarray]:
    """Real samples as uint8 frames (F, H, W, 3).

    Args:
        path: an npz with `frames` (N, F, H, W, 3) or (N, H, W, 3) uint8, or a folder of pictures
            and of such npz files with one sample each.
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
            raise UsageError(f"--real {path}: frames must be (N, F, H, W, 3) or (N, H, W, 3)")
        found = list(frames[:limit] if limit else frames)
    else:
        raise UsageError(f"--real {path}: no such file or folder")
    if len(found) < 2:
        raise UsageError(f"--real {path}: {len(found)} sample(s); a distribution needs at least 2")
    return [f[None] if f.ndim == 3 else f for f in found]


def _npz(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as data:
            frames: np.ndarray = data["frames"]
    except Exception as error:
        # zipfile, zlib and numpy each have their own idea of a broken file.
        raise UsageError(f"--real {path}: not an npz with an array `frames`") from error
    if frames.dtype != np.uint8:
        raise UsageError(f"--real {path}: frames must be uint8, got {frames.dtype}")
    return frames


def _real_file(path: Path) -> np.ndarray:
    if path.suffix == ".npz":
        return _npz(path)
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise UsageError(f"--real {path}: not a readable picture") from error


class Judge:
    """Judges samples against their dense runs.

    Args:
        options: of the run; an extractor or weights file that is named must load.
        sheet: of the model.
        class_pipe: the pipeline, where prompts are class names; else None.

    Raises:
        UsageError: a named file cannot be used.
    """

    def __init__(self, options: Options, sheet: Sheet, class_pipe: Any | None) -> None:
        self.not_available: dict[str, str] = {}
        self._class_pipe = class_pipe
        self.extractor = self._extractor(options, sheet)
        weights = dict(options.weights or {})
        self._lpips = lpips.Lpips(weights["lpips"]) if "lpips" in weights else None
        if self._lpips is None:
            self.not_available["lpips"] = lpips.HOW
        self._flip = self._has_flip()
        self.real: torch.Tensor | None = None
        if self.extractor is None:
            self.not_available["fid_dense"] = self.not_available["fid_real"] = extractors.HOW
            self.not_available["kid_real"] = extractors.HOW
        elif options.real:
            self.real = self.extractor(load_real(options.real, options.real_n))
        else:
            self.not_available["fid_real"] = self.not_available["kid_real"] = REAL_HOW
        if self.extractor is None or self.extractor.judge is None:
            self.not_available["accuracy"] = accuracy.HOW

    def _extractor(self, options: Options, sheet: Sheet) -> extractors.Extractor | None:
        if options.features == "none":
            return None
        if options.features:
            return extractors.load_extractor(options.features)
        if sheet.features is not None and sheet.features.is_dir():
            return extractors.load_extractor(str(sheet.features))
        return None

    def _has_flip(self) -> bool:
        try:
            import flip_evaluator  # noqa: F401
        except ImportError:
            self.not_available["flip"] = flip.HOW
            return False
        return True

    @property
    def features(self) -> dict[str, Any] | None:
        """Name and width of the extractor, for `run.json`."""
        if self.extractor is None:
            return None
        return {"name": self.extractor.name, "dim": self.extractor.dim}

    def judge(self, sample: Sample, reference: np.ndarray, frames: np.ndarray) -> dict[str, Any]:
        """All metrics of one sample.

        Args:
            sample: whose prompt the frames should show.
            reference: the dense run's frames, uint8 (F, H, W, 3).
            frames: the row's frames of the same sample.

        Returns:
            `psnr`, `mse`, `identical`, `ssim`, `flip`, `lpips`, `colour`, `shape`, `direction`;
            None for what is not available.

        Raises:
            UsageError: the frames differ in size.
        """
        mse = mean_squared_error(reference, frames)
        metrics: dict[str, Any] = {
            "psnr": psnr(reference, frames),
            "psnr_pooled": from_mse(mse),
            "mse": mse,
            "identical": bool(np.array_equal(reference, frames)),
            "ssim": ssim(reference, frames),
            "flip": flip.flip(reference, frames) if self._flip else None,
            "lpips": self._lpips.distance(reference, frames) if self._lpips else None,
        }
        metrics |= dict.fromkeys(("colour", "shape", "direction"))
        net = self.extractor.judge if self.extractor is not None else None
        if net is not None:
            label = class_label(self._class_pipe, sample.prompt) if self._class_pipe else None
            expected = accuracy.expected_objects(sample.prompt, label)
            if expected:
                metrics |= accuracy.accuracy(net, frames, expected)
        return metrics
