"""How far colours shift as a whole, wherever in the picture they are.

The distance is the earth mover's (Rubner et al. 2000) between the histograms of a channel, which in
one dimension is the area between the two cumulative histograms.
"""

from __future__ import annotations

from typing import Any

import torch

from .base import Better, Metric, Shown, Unit, register
from .frames import frame_pair


def histogram_distance(reference: Any, candidate: Any) -> float:
    """Mean over frames and channels of the earth mover's distance of colour histograms.

    Args:
        reference: frames (F, H, W, 3), uint8 or float in [0, 1].
        candidate: the same shape.

    Returns:
        8-bit levels: 0 for the same colours in whatever places, c where all are c levels brighter.

    Raises:
        UsageError: shapes differ, or a value is not finite.
    """
    a, b = (x.flatten(2).sort(dim=-1).values for x in frame_pair(reference, candidate))
    # Of equally many values each, the cheapest transport pairs the sorted ones.
    return float(torch.mean((a - b).abs()) * 255)


register(
    Metric(
        key="histogram",
        title="histogram",
        unit=Unit.NUMBER,
        better=Better.LOWER,
        about="earth mover's distance of colour histograms to dense, in 8-bit levels, 0 is equal",
        run=histogram_distance,
        format=lambda value: f"{value:.2f}",
        shown=Shown.PAGE,
    )
)
