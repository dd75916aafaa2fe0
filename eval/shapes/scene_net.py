"""The small network that judges the textured scenes: what each part of a picture shows.

It needs torch and safetensors only. It is trained by `samples/train/train.py scenes-features`.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import Stage
from .network_folder import load_network, save_network

SIZE = 128
CELL = 8  # pixels of the side of what gets a label of its own
KIND = "SceneNet"
_WIDTHS = (32, 64, 96)
_FIELDS = ("things", "materials", "colours")


class _Around(nn.Module):
    """Look further: a convolution of each channel with holes, then one across channels."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.each = nn.Conv2d(
            width, width, 5, padding=2 * dilation, dilation=dilation, groups=width
        )
        self.norm = nn.GroupNorm(8, width)
        self.across = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.across(self.norm(self.each(x))))


class SceneNet(nn.Module):
    """CNN that names thing, material and colour of every cell of a picture.

    Walls and floors are the two kinds after the things, and have no colour (the number after the
    colours); the sky is the material after the materials, of a wall.

    Args:
        things: names of the things.
        materials: names of the materials.
        colours: names of the colours.
    """

    def __init__(
        self, things: tuple[str, ...], materials: tuple[str, ...], colours: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.things, self.materials, self.colours = things, materials, colours
        self.stages = nn.ModuleList(Stage(a, b) for a, b in pairwise((3, *_WIDTHS)))
        self.num_features = _WIDTHS[-1]
        self.around = nn.ModuleList(_Around(self.num_features, d) for d in (1, 2, 3, 1))
        self.norm = nn.GroupNorm(8, self.num_features)
        sizes = (len(things) + 2, len(materials) + 1, len(colours) + 1)
        self.heads = nn.ModuleList(nn.Conv2d(self.num_features, size, 1) for size in sizes)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> SceneNet:
        """Load a folder, as `load_network` does."""
        return load_network(
            Path(folder),
            KIND,
            lambda config: cls(*(tuple(map(str, config[field])) for field in _FIELDS)),
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder, as `save_network` does."""
        config = {"network": KIND, **{field: list(getattr(self, field)) for field in _FIELDS}}
        save_network(self, Path(folder), config)

    def forward(self, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (N, 96, 16, 16) and logits of thing, material and colour (N, classes, 16, 16).

        Args:
            pictures: (N, 3, 128, 128) in [-1, 1].
        """
        x = pictures
        for stage in self.stages:
            x = stage(x)
        for layer in self.around:
            x = layer(x)
        x = F.silu(self.norm(x))
        return x, [head(x) for head in self.heads]

    @torch.inference_mode()
    def see(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, 96), mean over the cells, and labels (N, 3, 16, 16).

        Args:
            pictures: (N, 3, H, W) in [0, 1].

        Raises:
            ValueError: not pictures, or not floats.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3 or not pictures.is_floating_point():
            raise ValueError(
                f"expected floats (N, 3, H, W) in [0, 1], got {pictures.dtype} of shape "
                f"{tuple(pictures.shape)}"
            )
        if pictures.shape[-2:] != (SIZE, SIZE):
            pictures = F.interpolate(pictures, (SIZE, SIZE), mode="bilinear", antialias=True)
        features, labels = [], []
        for part in pictures.split(32):
            found, logits = self(part.to(self.heads[0].weight) * 2 - 1)
            features.append(found.mean((2, 3)))
            labels.append(torch.stack([x.argmax(1) for x in logits], 1))
        return torch.cat(features), torch.cat(labels)
