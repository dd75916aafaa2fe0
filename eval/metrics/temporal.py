"""How clips change from frame to frame, by plain differences of neighbouring frames.

No motion is compensated: what moves counts as change. `temporal_consistency` is the measure that
VBench calls temporal flickering (Huang et al. 2024), here on every clip and not only on still ones,
so it must be read beside dense's row. `flicker` compares the changes with those of dense: motion
that dense has as well cancels, and so does an error that stays the same in all frames.
"""

from __future__ import annotations

from typing import Any

from .base import Better, Metric, Shown, Unit, register
from .frames import frame_pair, to_frames


def temporal_consistency(reference: Any, candidate: Any) -> float | None:
    """1 less the mean absolute difference of neighbouring frames, values in [0, 1].

    Args:
        reference: of no influence.
        candidate: frames (F, H, W, 3), uint8 or float in [0, 1].

    Returns:
        1 for a clip that stands still; None for a single picture.

    Raises:
        UsageError: frames of a wrong shape, or a value that is not finite.
    """
    del reference
    frames = to_frames(candidate, "candidate")
    return None if len(frames) < 2 else 1.0 - float(frames.diff(dim=0).abs().mean())


def flicker(reference: Any, candidate: Any) -> float | None:
    """Mean absolute difference between the changes from frame to frame and those of dense.

    Args:
        reference: frames (F, H, W, 3), uint8 or float in [0, 1].
        candidate: the same shape.

    Returns:
        8-bit levels, 0 where both change alike; None for a single picture.

    Raises:
        UsageError: shapes differ, or a value is not finite.
    """
    a, b = frame_pair(reference, candidate)
    return None if len(a) < 2 else float((b - a).diff(dim=0).abs().mean() * 255)


register(
    Metric(
        key="flicker",
        title="flicker",
        unit=Unit.NUMBER,
        better=Better.LOWER,
        about="how much otherwise than dense a clip changes from frame to frame (plain "
        "differences), in 8-bit levels, 0 is equal",
        run=flicker,
        format=lambda value: f"{value:.2f}",
        shown=Shown.FILE,
    )
)
register(
    Metric(
        key="temporal_consistency",
        title="consistency",
        unit=Unit.NUMBER,
        better=Better.NONE,
        about="1 less the mean absolute difference of neighbouring frames (VBench's temporal "
        "flickering); motion lowers it, so compare with dense's row",
        run=temporal_consistency,
        format=lambda value: f"{value:.4f}",
        shown=Shown.PAGE,
    )
)
