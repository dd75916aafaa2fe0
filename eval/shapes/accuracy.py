"""Does a sample show what its prompt asks for? Judged by the shapes samples' own network."""

from __future__ import annotations

from typing import Any

import torch

from ditaccel.errors import UsageError

from ..metrics.frames import to_frames

HOW = "the judge knows coloured shapes only: use the shapes samples with their features folder"


def expected_objects(prompt: str, label: int | None = None) -> list[Any] | None:
    """What a prompt (or a class number of shapes-dit) asks for; None where the judge cannot know.

    Args:
        prompt: text such as "a red circle moving left", or a class name such as "red circle".
        label: class number, used where the text itself names no coloured shape.
    """
    from ditaccel.eval.shapes.features import class_objects, parse_prompt

    try:
        return list(parse_prompt(prompt))
    except ValueError:
        pass
    if label is None:
        return None
    try:
        return list(class_objects(label))
    except ValueError:
        return None


def accuracy(net: Any, frames: Any, expected: list[Any]) -> dict[str, float]:
    """Shares of the expected objects found in one sample.

    Args:
        net: `ditaccel.eval.shapes.features.FeatureNet`.
        frames: (F, H, W, 3), uint8 or float in [0, 1].
        expected: from `expected_objects`.

    Returns:
        "colour", "shape" and, for moving objects, "direction", each in [0, 1].

    Raises:
        UsageError: unusable frames, or nothing expected.
    """
    from ditaccel.eval.shapes.features import prompt_accuracy

    if not expected:
        raise UsageError(f"no expected objects: {HOW}")
    clip = to_frames(frames).float()
    images = clip[None] if len(clip) > 1 else clip
    with torch.inference_mode():
        return dict(prompt_accuracy(net, images, [expected]))
