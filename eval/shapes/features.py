"""The small network that judges the shapes samples: FID features and prompt accuracy.

It needs torch and safetensors only. The trained weights lie in `samples/models/shapes-features`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .network_folder import load_network, save_network

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
DIRECTIONS = ("left", "right", "up", "down")
SIZE = 64

_PHRASE = re.compile(
    rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?: moving ({'|'.join(DIRECTIONS)}))?"
)


@dataclass(frozen=True)
class SceneObject:
    """One object of a picture or clip; `direction` is None where nothing moves."""

    colour: str
    shape: str
    direction: str | None = None


def parse_prompt(text: str) -> list[SceneObject]:
    """The objects a sample prompt asks for.

    Args:
        text: such as "a small red circle moving right and a blue square moving up".

    Raises:
        ValueError: the text names no coloured shape.
    """
    found = [SceneObject(c, s, d or None) for c, s, d in _PHRASE.findall(text.lower())]
    if not found:
        raise ValueError(f"no coloured shape in prompt {text!r}: expected such as 'a red circle'")
    return found


def class_objects(label: int) -> list[SceneObject]:
    """The object behind a class number of shapes-dit (shape-major, 24 classes)."""
    if not 0 <= label < len(SHAPES) * len(COLOURS):
        raise ValueError(f"class {label} is not one of the {len(SHAPES) * len(COLOURS)} classes")
    shape, colour = divmod(label, len(COLOURS))
    return [SceneObject(COLOURS[colour], SHAPES[shape])]


class Stage(nn.Module):
    """Halve the picture, then one residual convolution."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(inside, outside, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(8, outside)
        self.conv = nn.Conv2d(outside, outside, 3, padding=1, groups=4)
        self.norm2 = nn.GroupNorm(8, outside)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.down(x)))
        return x + F.silu(self.norm2(self.conv(x)))


class FeatureNet(nn.Module):
    """CNN on three frames (first, middle, last; a picture counts three times).

    The feature is a maximum over places, so that an object counts the same wherever it is.

    Args:
        widths: channels of the halving stages.
        features: width of the penultimate layer, the feature of FID.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96), features: int = 64) -> None:
        super().__init__()
        self.config = {"widths": list(widths), "features": features}
        sizes = (9, *widths)
        self.stages = nn.ModuleList(Stage(a, b) for a, b in pairwise(sizes))
        self.wide = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.norm = nn.GroupNorm(8, widths[-1])
        self.detectors = nn.Conv2d(widths[-1], features, 1)
        self.shape_head = nn.Linear(features, len(COLOURS) * (1 + len(SHAPES)))
        self.direction_head = nn.Linear(features, len(COLOURS) * (1 + len(DIRECTIONS)))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> FeatureNet:
        """Load a folder, as `load_network` does."""
        return load_network(
            Path(folder),
            "FeatureNet",
            lambda config: cls(tuple(config["widths"]), int(config["features"])),
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder, as `save_network` does."""
        save_network(self, Path(folder), self.config)

    def forward(self, stack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features and logits.

        Args:
            stack: (N, 9, 64, 64) in [-1, 1].

        Returns:
            features (N, 64), shape logits (N, 6, 5) and direction logits (N, 6, 5); index 0 means
            absent and standing still.
        """
        x = stack
        for stage in self.stages:
            x = stage(x)
        x = x + F.silu(self.norm(self.wide(x)))
        features = self.detectors(x).amax((-2, -1))
        colours = len(COLOURS)
        return (
            features,
            self.shape_head(features).view(len(x), colours, -1),
            self.direction_head(features).view(len(x), colours, -1),
        )

    @staticmethod
    def stack(images: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) or clips (N, F, 3, H, W) in [0, 1] → (N, 9, 64, 64) in [-1, 1]."""
        if images.ndim not in (4, 5) or images.shape[-3] != 3 or 0 in images.shape:
            raise ValueError(
                "expected pictures (N, 3, H, W) or clips (N, F, 3, H, W), "
                f"got shape {tuple(images.shape)}"
            )
        if not images.is_floating_point():
            raise ValueError(f"expected floats in [0, 1], got {images.dtype}")
        if images.ndim == 4:
            images = images[:, None]
        last = images.shape[1] - 1
        frames = images[:, [0, last // 2, last]].flatten(1, 2)
        if frames.shape[-2:] != (SIZE, SIZE):
            frames = F.interpolate(
                frames, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False
            )
        return frames * 2 - 1

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight = self.detectors.weight
        with torch.inference_mode():
            outputs = [
                self(part.to(weight.device, weight.dtype)) for part in self.stack(images).split(64)
            ]
        features, shapes, directions = (torch.cat(column) for column in zip(*outputs, strict=True))
        return features, shapes, directions

    def features(self, images: Tensor) -> Tensor:
        """FID features (N, 64) of pictures (N, 3, H, W) or clips (N, F, 3, H, W) in [0, 1]."""
        return self._run(images)[0]

    def judge(self, images: Tensor) -> list[list[SceneObject]]:
        """The objects seen in each picture (N, 3, H, W) or clip (N, F, 3, H, W) in [0, 1]."""
        _, shapes, directions = self._run(images)
        result = []
        for shape_row, direction_row in zip(
            shapes.argmax(-1).tolist(), directions.argmax(-1).tolist(), strict=True
        ):
            seen = [
                SceneObject(COLOURS[k], SHAPES[s - 1], DIRECTIONS[d - 1] if d else None)
                for k, (s, d) in enumerate(zip(shape_row, direction_row, strict=True))
                if s
            ]
            result.append(seen)
        return result


def prompt_accuracy(
    net: FeatureNet, images: Tensor, expected: list[list[SceneObject]]
) -> dict[str, float]:
    """Shares of the expected objects that the judge finds.

    An object's colour counts as right if that colour is seen; its shape and direction count as
    right if the object of that colour has them.

    Args:
        net: the judge.
        images: pictures (N, 3, H, W) or clips (N, F, 3, H, W) in [0, 1].
        expected: for each picture the objects asked for.

    Returns:
        "colour" and "shape" in [0, 1]; "direction" too where any object is asked to move.
    """
    if len(images) != len(expected):
        raise ValueError(f"{len(images)} pictures but {len(expected)} lists of expected objects")
    hits: dict[str, list[bool]] = {"colour": [], "shape": [], "direction": []}
    for seen, wanted in zip(net.judge(images), expected, strict=True):
        by_colour = {item.colour: item for item in seen}
        for item in wanted:
            match = by_colour.get(item.colour)
            hits["colour"].append(match is not None)
            hits["shape"].append(match is not None and match.shape == item.shape)
            if item.direction is not None:
                hits["direction"].append(match is not None and match.direction == item.direction)
    return {name: sum(values) / len(values) for name, values in hits.items() if values}
