"""STA: sliding tile attention.

The video is cut into tiles of frames, rows and columns, tokens are put in the order of the tiles,
and each tile attends to a window of whole tiles around it, so that no tile is kept in part. Paper:
arXiv 2502.04507. The rule, per axis with n tiles and a window of w (odd): the centre of the window
is the own tile, moved inwards to at least w // 2 and at most n - 1 - w // 2; key tiles up to w // 2
from it are kept. Text attends to all, and all attend to it. Even windows, which the authors' code
widens by one, are refused; a window that is wider than the video keeps all of it. Ours: grids that
the tiles do not divide (their code is for three sizes), pictures (one frame), and models that do
not tell where tokens lie (a line). The authors choose among windows per head by a search over
masks; here one window serves all heads.
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


@method("sta", paper="2502.04507")
@dataclass(frozen=True, kw_only=True)
class STAConfig(BoxOptions):
    """Each tile of neighbouring tokens attends to a window of whole tiles around it.

    Options that all methods share are described in `TileOptions`. The map follows from the size
    alone: it is made once per generation, and is the same for all heads.

    Args:
        window: frames, rows and columns of the window, counted in tiles, each odd. Wider is slower
            and nearer to dense. Published: (3, 3, 3) for the fine-tuned HunyuanVideo.
        box: frames, rows and columns of a tile. Published: (6, 8, 8).
        q_tile: query tokens per tile of the kernel; None for those of a tile.
        k_tile: key tokens per tile of the kernel; None for those of a tile.
    """

    # Dense first steps: as for the untuned model; the fine-tuned one has none.
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {
            "window": (3, 3, 3),
            "box": (6, 8, 8),
            "dense_steps": 12,
            "min_tokens": 0,
            "break_even": 1.0,
        }
    }
    swept: ClassVar[Swept] = Swept(
        "window", ((1, 1, 1), (1, 3, 3), (3, 3, 3), (3, 5, 5), (5, 5, 5)), {"box": (2, 8, 8)}
    )

    window: tuple[int, ...] = (3, 3, 3)
    box: tuple[int, ...] = (6, 8, 8)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_triple("window", self.window)
        require(
            all(n % 2 for n in self.window),
            f"window is {list(self.window)} tiles; give odd numbers, so that it has a tile in its "
            "middle",
        )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        small = cls(box=(1, 4, 4), min_tokens=0, dense_steps=0, break_even=1.0)
        return (Example(replace(small, window=(99, 99, 99)), replace(small, window=(1, 1, 1))),)

    def planner(self) -> STAPlanner:
        """What the seam carries out."""
        return STAPlanner(self)


class STAPlanner(BoxPlanner):
    """Makes one map of windows per size."""

    def sees(self, boxes: Boxes, context: LayerContext) -> Tensor:
        """See `BoxPlanner`."""
        frames, rows, columns = (
            -(-n // size) for n, size in zip(boxes.grid, boxes.box, strict=True)
        )
        window = extent(self.config.window, (frames, rows, columns), boxes.line)
        return boxes.each_sees(
            [
                tile_window(n, size, wide)
                for n, size, wide in zip(boxes.grid, boxes.box, window, strict=True)
            ]
        )


def tile_window(length: int, tile: int, window: int) -> tuple[Tensor, Tensor]:
    """First and last key of each query along one axis.

    Args:
        length: of the axis, in tokens.
        tile: its tiles, in tokens.
        window: in tiles, odd, or as many as there are.
    """
    tiles, half = -(-length // tile), window // 2
    own = torch.arange(length) // tile
    if window >= tiles:
        return torch.zeros_like(own), torch.full_like(own, length - 1)
    centre = own.clamp(half, tiles - 1 - half)
    return (centre - half) * tile, ((centre + half + 1) * tile - 1).clamp(max=length - 1)
