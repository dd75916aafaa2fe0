"""CLEAR: each token of a picture attends to those in a circle around it.

A pair of tokens of a picture is kept if the squares of their distances in rows and columns add up
to less than the radius squared; text attends to all, and all attend to it. Paper: arXiv 2412.16112.
Its authors distil FLUX for this map; untrained use is ours, with the first steps dense. Their
kernel masks single tokens; here a tile is kept if any of its pairs is in a circle, and is then
computed as a whole: more is seen, never less. Tiles are squares of tokens (ours; theirs are runs of
128 tokens in raster order, which are as wide as the picture), and frames of a clip are seen
through: a circle is a cylinder in time. Where it is not known where tokens lie, a token sees as
many on a line as a circle holds. The authors' variant with keys and values that a trained kernel
makes smaller is not here; `rest="means"` puts one mean key and value in place of each tile outside
the circle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config import Example, method, require
from .engine.boxes import Boxes, BoxOptions, BoxPlanner
from .engine.options import Swept, TrainedOptions
from .engine.planner import LayerContext


@method("clear", paper="2412.16112")
@dataclass(frozen=True, kw_only=True)
class CLEARConfig(TrainedOptions, BoxOptions):
    """Each token attends to those in a circle around it.

    Options that all methods share are described in `TileOptions`. The map follows from the size
    alone: it is made once per generation, and is the same for all heads.

    Args:
        radius: of the circle, in tokens. Larger is slower and nearer to dense. Published: 8, 16 and
            32, after training.
        box: frames, rows and columns of a tile.
        weights: safetensors file that `ditaccel.finetune` wrote for this radius and box: changes of
            the model's own weights, which are in place during sparse steps only.
        q_tile: query tokens per tile of the kernel; None for those of a box.
        k_tile: key tokens per tile of the kernel; None for those of a box.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"radius": 16.0, "dense_steps": 0, "min_tokens": 0, "break_even": 1.0}
    }
    density_option: ClassVar[str] = "radius"
    trained_for: ClassVar[tuple[str, ...]] = ("radius", "box", "rest")
    swept: ClassVar[Swept] = Swept("radius", (4.0, 8.0, 12.0, 16.0, 24.0, 32.0))

    radius: float = 16.0
    box: tuple[int, ...] = (1, 8, 8)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.radius > 0, f"radius is {self.radius:g} tokens; it must be more than 0")

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        small = cls(box=(1, 4, 4), min_tokens=0, dense_steps=0, break_even=1.0)
        return (Example(replace(small, radius=1e6), replace(small, radius=1.0)),)

    def planner(self) -> CLEARPlanner:
        """What the seam carries out."""
        return CLEARPlanner(self)


class CLEARPlanner(BoxPlanner):
    """Makes one map of circles per size."""

    def sees(self, boxes: Boxes, context: LayerContext) -> Tensor:
        """See `BoxPlanner`."""
        radius = self.density_setting(context)
        if boxes.line:
            radius = math.pi * radius**2 / 2
        squares = torch.zeros(1, 1)
        for axis, cells in enumerate(boxes.cells):
            first, last = boxes.spans(axis)
            # how far the nearest tokens of two boxes are from each other
            gap = torch.maximum(first[:, None] - last, first - last[:, None]).clamp(min=0).float()
            if axis == 0 and cells.numel() > 1:
                gap = torch.zeros_like(gap)
            pairs = squares[:, None, :, None] + gap.square()[:, None]
            squares = pairs.reshape(len(squares) * len(gap), -1)
        return squares < radius**2
