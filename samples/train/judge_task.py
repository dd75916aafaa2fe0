"""Training and testing of the feature network that judges the samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from data import FRAMES, Scenes, render, sample_scenes
from ditaccel.eval.shapes.features import COLOURS, FeatureNet, SceneObject, class_objects
from loop import device
from torch import Tensor, nn


def _targets(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Shape and direction classes (N, 6) per colour, 0 for absent and standing still."""
    shape = torch.zeros(len(scenes), len(COLOURS), dtype=torch.long)
    direction = shape.clone()
    for k in range(2):
        rows = (scenes.count > k).nonzero()[:, 0]
        columns = scenes.colour[rows, k]
        shape[rows, columns] = scenes.shape[rows, k] + 1
        direction[rows, columns] = scenes.direction[rows, k] + 1
    return shape.to(device()), direction.to(device())


def degraded(stack: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, noise and colour drift of a random strength, as autoencoders and samplers make them.

    Args:
        stack: (N, C, H, W), sides of a multiple of four.
    """

    def draw(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator).to(stack.device)

    n, channels, height, width = stack.shape
    small = F.interpolate(stack, scale_factor=0.5, mode="bilinear", antialias=True)
    blurred = F.interpolate(small, scale_factor=2, mode="bilinear")
    stack = torch.lerp(stack, blurred, draw(n, 1, 1, 1))
    fine = torch.randn(stack.shape, generator=generator).to(stack.device)
    coarse = torch.randn(n, channels, height // 4, width // 4, generator=generator).to(stack.device)
    coarse = F.interpolate(coarse, scale_factor=4, mode="bilinear")
    stack = stack + 0.12 * draw(n, 1, 1, 1) * fine + 0.15 * draw(n, 1, 1, 1) * coarse
    return stack * (1 + 0.2 * (draw(n, 1, 1, 1) - 0.5)) + 0.2 * (draw(n, channels, 1, 1) - 0.5)


def feature_loss(batch: int = 64) -> Callable:
    """Cross-entropy of shapes and directions, on still and moving scenes in turn."""

    def loss(model: nn.Module, step: int, generator: torch.Generator) -> Tensor:
        moving = step % 2 == 1
        scenes = sample_scenes(batch, generator, moving=moving)
        times = torch.tensor([0, FRAMES // 2, FRAMES - 1]) if moving else torch.zeros(3)
        clean = render(scenes, times).flatten(1, 2).to(device()) * 2 - 1
        _, shapes, directions = model(degraded(clean, generator))
        want_shape, want_direction = _targets(scenes)
        return F.cross_entropy(shapes.flatten(0, 1).float(), want_shape.flatten()) + (
            F.cross_entropy(directions.flatten(0, 1).float(), want_direction.flatten())
        )

    return loss


def build_features() -> FeatureNet:
    return FeatureNet()


def objects_of(scenes: Scenes) -> list[list[SceneObject]]:
    """What a perfect judge would see."""
    from data import DIRECTIONS

    result = []
    for i in range(len(scenes)):
        seen = []
        for k in range(int(scenes.count[i])):
            label = int(scenes.shape[i, k]) * len(COLOURS) + int(scenes.colour[i, k])
            (item,) = class_objects(label)
            way = int(scenes.direction[i, k])
            seen.append(SceneObject(item.colour, item.shape, DIRECTIONS[way] if way >= 0 else None))
        result.append(seen)
    return result
