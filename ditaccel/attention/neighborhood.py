"""Generalized neighborhood attention (GNA): each token attends to a window around it, in steps.

Per axis of length X, with a window w, a stride s <= w and a dilation d (w d <= X): tokens of equal
remainder x % d form a class, in which the token has the coordinate c = x // d and the class the
length X'. Tokens share windows in groups of s: the leader is min(c // s * s + s // 2, X' - 1), and
the centre of the window is the leader moved inwards, so that w // 2 tokens left of it and
w // 2 - 1 + w % 2 right of it lie in the class. A key is kept where it is in the window on all
three axes. Stride 1 is ordinary neighborhood attention, stride w blocked attention. Paper: arXiv
2504.16922 (code: NATTEN).

Tokens are put in the order of boxes (of neighbours within a class, where there is a dilation), so
that a strided window falls into whole tiles wherever the box divides the stride and the window
begins at a box. In general a tile is kept if any of its pairs is in a window, and is then computed
as a whole, where NATTEN masks what is outside: more is seen here, never less. Text attends to all,
and all attend to it; NATTEN computes its keys apart and merges, which gives the same. Causal axes
are not offered. Ours: pictures as clips of one frame, windows that are cut off at the size of an
axis, and models that do not tell where tokens lie (a line).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config import Example, method, require
from .engine.boxes import Boxes, BoxOptions, BoxPlanner, check_triple, extent
from .engine.options import Swept
from .engine.planner import LayerContext

_PUBLISHED: dict[str, Any] = {"dense_steps": 0, "min_tokens": 0, "break_even": 1.0}


@method("neighborhood", paper="2504.16922")
@dataclass(frozen=True, kw_only=True)
class NeighborhoodConfig(BoxOptions):
    """Each token attends to the window of its neighbours, which moves on in steps of whole tiles.

    Options that all methods share are described in `TileOptions`. The map follows from the size
    alone: it is made once per generation, and is the same for all heads.

    Args:
        window: frames, rows and columns of the window, in tokens; cut off at the size of the video.
            Wider is slower and nearer to dense. Published: (18, 24, 24) for HunyuanVideo at 720p,
            (1, 80, 80) for FLUX at 4K.
        stride: tokens that share a window, per axis, at most the window. A multiple of `box` is
            fastest. Published: (16, 8, 8) and (1, 16, 16).
        dilation: distance of neighbours, per axis; 1 for adjacent ones.
        box: frames, rows and columns of a tile. Published: (2, 8, 8) and (1, 16, 8).
        q_tile: query tokens per tile of the kernel; None for those of a box.
        k_tile: key tokens per tile of the kernel; None for those of a box.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "hunyuan_video": {
            **_PUBLISHED,
            "window": (18, 24, 24),
            "stride": (16, 8, 8),
            "box": (2, 8, 8),
        },
        "flux": {**_PUBLISHED, "window": (1, 80, 80), "stride": (1, 16, 16), "box": (1, 16, 8)},
    }
    swept: ClassVar[Swept] = Swept(
        "window",
        ((2, 8, 8), (4, 8, 8), (6, 8, 8), (10, 16, 16), (14, 24, 24), (18, 32, 32)),
        {"stride": (2, 8, 8)},
    )

    window: tuple[int, ...] = (18, 24, 24)
    stride: tuple[int, ...] = (16, 8, 8)
    dilation: tuple[int, ...] = (1, 1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("window", "stride", "dilation"):
            check_triple(name, getattr(self, name))
        require(
            all(s <= w for s, w in zip(self.stride, self.window, strict=True)),
            f"stride is {list(self.stride)}, but the window is {list(self.window)}: tokens in "
            "between would be seen by nobody; give strides of at most the window",
        )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        small = cls(box=(1, 4, 4), stride=(1, 2, 2), min_tokens=0, dense_steps=0, break_even=1.0)
        return (Example(replace(small, window=(99, 99, 99)), replace(small, window=(1, 3, 2))),)

    def planner(self) -> NeighborhoodPlanner:
        """What the seam carries out."""
        return NeighborhoodPlanner(self)


class NeighborhoodPlanner(BoxPlanner):
    """Makes one map of windows per size."""

    def boxes(self, context: LayerContext) -> Boxes:
        """See `BoxPlanner`."""
        config = self.config
        apart = "first_frame" in config.sinks
        return Boxes.of(context, config.box, config.dilation, apart)

    def sees(self, boxes: Boxes, context: LayerContext) -> Tensor:
        """See `BoxPlanner`."""
        config = self.config
        window, stride, dilation = (
            extent(size, boxes.grid, boxes.line)
            for size in (config.window, config.stride, config.dilation)
        )
        axes = zip(boxes.grid, window, stride, dilation, boxes.places, strict=True)
        return boxes.each_sees([neighbors(*axis) for axis in axes])


def neighbors(
    length: int, window: int, stride: int, dilation: int, places: Tensor
) -> tuple[Tensor, Tensor]:
    """First and last key of each query along one axis, as places.

    Args:
        length: of the axis, in tokens.
        window: in tokens; cut off at the shortest class.
        stride: in tokens.
        dilation: in tokens.
        places: see `Boxes`.
    """
    at = torch.arange(length)
    rest, own = at % dilation, at // dilation
    lengths = (length - rest - 1) // dilation + 1
    window = min(window, max(1, length // dilation))
    stride = min(stride, window)
    leader = torch.minimum(own // stride * stride + stride // 2, lengths - 1)
    left, right = window // 2, window // 2 - 1 + window % 2
    centre = torch.minimum(leader.clamp(min=left), lengths - 1 - right)
    begin = places - own  # the place of the first token of the class
    return begin + centre - left, begin + centre + right
