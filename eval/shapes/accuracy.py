"""Does a sample of the shapes models show what its prompt asks for?"""

from __future__ import annotations

from typing import Any

import torch

from ditaccel.errors import UsageError

from ..metrics.base import score
from ..metrics.frames import to_frames
from .features import FeatureNet, SceneObject, class_objects, parse_prompt, prompt_accuracy


class ShapesJudge:
    """The judge of coloured shapes, for `ditaccel eval`.

    Args:
        net: the trained network.
    """

    scores = tuple(score(key) for key in ("colour", "shape", "direction"))

    def __init__(self, net: FeatureNet) -> None:
        self._net = net

    def __call__(self, frames: Any, prompt: str, label: int | None) -> dict[str, float]:
        """Shares of the objects asked for that are found; empty where it cannot know them."""
        expected = expected_objects(prompt, label)
        return accuracy(self._net, frames, expected) if expected else {}


def expected_objects(prompt: str, label: int | None = None) -> list[SceneObject] | None:
    """What a prompt (or a class number of shapes-dit) asks for; None where the judge cannot know.

    Args:
        prompt: text such as "a red circle moving left", or a class name such as "red circle".
        label: class number, used where the text itself names no coloured shape.
    """
    try:
        return parse_prompt(prompt)
    except ValueError:
        pass
    if label is None:
        return None
    try:
        return class_objects(label)
    except ValueError:
        return None


def accuracy(net: FeatureNet, frames: Any, expected: list[SceneObject]) -> dict[str, float]:
    """Shares of the expected objects found in one sample.

    Args:
        net: the judge's network.
        frames: (F, H, W, 3), uint8 or float in [0, 1].
        expected: from `expected_objects`.

    Returns:
        "colour", "shape" and, for moving objects, "direction", each in [0, 1].

    Raises:
        UsageError: unusable frames, or nothing expected.
    """
    if not expected:
        raise UsageError("no expected objects: the judge knows coloured shapes only")
    clip = to_frames(frames).float()
    images = clip[None] if len(clip) > 1 else clip
    with torch.inference_mode():
        return prompt_accuracy(net, images, [expected])
