"""Fréchet video distance: between the features of whole clips (Unterthiner et al. 2018)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditaccel.errors import UsageError
from ditaccel.io import given

from . import i3d
from .base import Better, Estimate, Metric, Need, Per, Run, Shown, Unit, register
from .extractors import Extractor, load_extractor
from .fid import FEW, FEW_WORDS, FEWEST, estimate
from .weights import load_weights

HOW = (
    f"{i3d.HOW}, or the folder of a feature network that sees clips, such as "
    "samples/models/shapes-features; distances of two networks cannot be compared"
)


class Fvd:
    """Fréchet distance of clips by one network.

    Args:
        weights: file of I3D's weights, or folder of another network for clips.

    Raises:
        UsageError: missing, damaged, or of another network.
    """

    def __init__(self, weights: str | Path) -> None:
        path = given.path(weights)
        if path.is_dir():
            self._extractor, self._fewest = load_extractor(str(path)), 2
        else:
            net = i3d.I3d(load_weights(path))
            self._extractor = Extractor("i3d", net.num_features, net)
            self._fewest = i3d.FEWEST_FRAMES
        # Dense's clips are compared with those of every row.
        self._known: dict[bytes, Tensor] = {}

    def _features(self, clip: Any) -> Tensor:
        frames = np.ascontiguousarray(clip)
        key = hashlib.sha256(repr(frames.shape).encode() + frames.tobytes()).digest()
        if key not in self._known:
            self._known[key] = self._extractor([frames])[0]
        return self._known[key]

    def distance(self, reference: Sequence[Any], candidate: Sequence[Any]) -> Estimate | None:
        """FVD of two sets of clips.

        Args:
            reference: clips (F, H, W, 3), uint8.
            candidate: the same.

        Returns:
            None for pictures, which have no motion.

        Raises:
            UsageError: clips with fewer frames than the network needs, or fewer than 10 of them.
        """
        shortest = min(len(clip) for clip in (*reference, *candidate))
        if shortest < 2:
            return None
        if shortest < self._fewest:
            raise UsageError(
                f"FVD by I3D needs clips of at least {self._fewest} frames, got {shortest}; give a "
                "folder of a network for shorter ones"
            )
        sets = [torch.stack([self._features(clip) for clip in x]) for x in (reference, candidate)]
        return estimate(*sets)


def _load(weights: str) -> Run:
    return Fvd(weights).distance


def _register(key: str, title: str, about: str, *needs: Need) -> None:
    metric = Metric(
        key=key,
        title=title,
        unit=Unit.NUMBER,
        better=Better.LOWER,
        about=f"Fréchet distance of whole clips to {about}; 95 % interval by bootstrap",
        load=_load,
        weights="fvd",
        per=Per.SET,
        needs=(Need.PICTURES, Need.WEIGHTS, *needs),
        how=HOW,
        format=lambda value: f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}",
        shown=Shown.FILE,
        fewest=FEWEST,
        enough=FEW,
        few=FEW_WORDS,
    )
    register(metric)


_register("fvd_dense", "FVD dense", "the dense outputs, 0 is equal")
_register("fvd_real", "FVD real", "real clips; compare with dense's row", Need.REFERENCE)
