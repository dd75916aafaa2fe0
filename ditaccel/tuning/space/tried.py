"""What a search has tried, as data that a page is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .race import Aim, Standing
from .store import config_name

# File in the folder of the runs.
PAGE = "tuning.json"
# Frames, and pixels of a side, that are kept of a result.
_FRAMES, _SIDE = 6, 256


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        best: the candidate that serves the target best.
        reached: whether it does what was asked.
        aim: what was asked.
        standings: of all that was run, the winner's among them.
        dense: seconds of a dense generation.
        words: the result in a line.
        prompts: that there were; the best was run on fewer where the time was up.
    """

    best: Standing
    reached: bool
    aim: Aim
    standings: tuple[Standing, ...]
    dense: float
    words: str
    prompts: int

    @property
    def complete(self) -> bool:
        """Whether the best was run on all prompts."""
        return self.best.runs >= self.prompts

    @property
    def speedup(self) -> float:
        """Seconds of a dense generation by those of the best."""
        return self.dense / self.best.seconds


def picture_name(config: str) -> str:
    """Name of the arrays that hold pictures of a config with this name."""
    return f"picture-{config}"


def small(frames: np.ndarray) -> np.ndarray:
    """A few frames of a sample `(F, H, W, 3)` or `(H, W, 3)`, small: `(F', H', W', 3)`."""
    frames = frames if frames.ndim == 4 else frames[None]
    picks = np.unique(np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int))
    stride = -(-max(frames.shape[1:3]) // _SIDE)
    return np.ascontiguousarray(frames[picks, ::stride, ::stride])


def as_page(found: Found) -> dict[str, Any]:
    """One target of the page."""
    aim, measure = found.aim, found.aim.measure
    rows = [
        {
            "name": each.candidate.config.name,
            "kind": each.candidate.kind,
            "config": config_name(each.candidate.config),
            "level": measure.level(each.levels, aim.statistic),
            "worst": measure.level(each.levels, "min"),
            "seconds": each.seconds,
            "speedup": found.dense / each.seconds,
            "prompts": each.runs,
            "reached": aim.reached(each),
        }
        for each in sorted(found.standings, key=lambda s: s.seconds)
    ]
    return {
        "metric": measure.key,
        "unit": measure.unit.strip(),
        "higher": measure.higher,
        "statistic": aim.statistic,
        "level": aim.level,
        "seconds": aim.seconds,
        "dense": found.dense,
        "reached": found.reached,
        "best": config_name(found.best.candidate.config),
        "words": found.words,
        "rows": rows,
    }
