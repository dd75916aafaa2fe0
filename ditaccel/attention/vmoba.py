"""VMoBA: each query keeps the chunks of keys that it scores highest; their shape goes by layer.

Layers take turns between chunks of frames, of windows over all frames, and of small boxes. A query
scores the mean key of each chunk; scores are brought to 0 to 1 over the chunks, and from the
highest down chunks are kept until they hold a share of their sum, its own chunk always. Paper:
arXiv 2506.23858, for training and without.

Ours: a tile of queries keeps what any of its queries keeps, since the kernel computes whole tiles;
the authors gather the keys of each query instead. The number of chunks may not be fixed instead
(their first way), and where frames, rows and columns are not known, chunks are runs of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Example, method, require
from ..kernels import Tiling
from ..pipelines.grids import Grid
from .engine.cubes import cube_sizes
from .engine.options import Swept, TileOptions
from .engine.planner import LayerContext, State
from .engine.scores import grouped_product, mean_keys
from .engine.tile_planner import MaskPlanner

# Elements of the largest tensors that are held at once.
_CHUNK = 1 << 24


@method("vmoba", paper="2506.23858")
@dataclass(frozen=True, kw_only=True)
class VMoBAConfig(TileOptions):
    """Chunks of keys that hold a share of each query's scores; three shapes of chunks take turns.

    Options that all methods share are described in `TileOptions`.

    Args:
        threshold: share of a query's scores, each brought to 0 to 1, that its chunks hold, in
            (0, 1]. Published: 0.25.
        frames: frames of a chunk in the layers 0, 3, 6, ...; 0 leaves them out. Published: 2.
        window: rows and columns of a chunk that spans all frames, in the layers 1, 4, ...; ()
            leaves them out. Published: (3, 4).
        box: frames, rows and columns of a chunk in the layers 2, 5, ...; () leaves them out.
            Published: (4, 6, 4).
        q_tile: query tokens per tile.
        dense_steps: first steps that stay dense: a number, or a share of the steps below 1.
            Published: 12.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # (layers count from 0 here; which of the three comes first was not found out)
        "": {"threshold": 0.25, "dense_steps": 12, "min_tokens": 0, "break_even": 1.0}
    }
    swept: ClassVar[Swept] = Swept("threshold", (0.01, 0.02, 0.05, 0.1, 0.2, 0.3))

    threshold: float = 0.25
    frames: int = 2
    window: tuple[int, ...] = (3, 4)
    box: tuple[int, ...] = (4, 6, 4)
    q_tile: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0.0 < self.threshold <= 1.0, f"threshold is {self.threshold}; give a share in (0, 1]"
        )
        require(self.frames >= 0, f"frames is {self.frames}; it must be 0 or more")
        for name, length in (("window", 2), ("box", 3)):
            value = getattr(self, name)
            require(
                len(value) in (0, length) and all(n >= 1 for n in value),
                f"{name} is {value}; give {length} numbers of 1 or more, or []",
            )
        require(
            bool(self.frames or self.window or self.box),
            "frames, window and box all leave their layers out; give one of them",
        )
        require(self.q_tile >= 16, f"q_tile is {self.q_tile}; tiles have at least 16 tokens")

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        small = cls(
            q_tile=16,
            frames=1,
            window=(2, 2),
            box=(1, 2, 2),
            min_tokens=0,
            dense_steps=0,
            break_even=1.0,
        )
        return (Example(replace(small, threshold=1.0), replace(small, threshold=0.01)),)

    def planner(self) -> VMoBAPlanner:
        """What the seam carries out."""
        return VMoBAPlanner(self)


class VMoBAPlanner(MaskPlanner):
    """Scores the chunks again at each call; keeps nothing."""

    planning = 0.1

    def cube(self, context: LayerContext) -> Grid | None:
        """Frames, rows and columns of a chunk in this layer; None where the grid is not known."""
        if context.grid is None or context.grid_tokens is None:
            return None
        config, (frames, rows, columns) = self.config, context.grid
        shapes = (
            (config.frames, rows, columns) if config.frames else None,
            (frames, *config.window) if config.window else None,
            config.box or None,
        )
        used = [shape for shape in shapes if shape is not None]
        return used[context.layer % len(used)]

    def order(self, context: LayerContext, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """See `MaskPlanner`: chunk by chunk, then all others."""
        cube = self.cube(context)
        return None if cube is None else self.in_cubes(context, cube, device, in_front=True)

    def tilings(self, q: Tensor, k: Tensor, context: LayerContext) -> tuple[Tiling, Tiling]:
        """See `TilePlanner`: chunks of keys, and one of what is beside the grid."""
        q_tile, cube = self.config.q_tile, self.cube(context)
        rows = Tiling.fixed(q.shape[2], q_tile)
        if cube is None:
            return rows, Tiling.fixed(k.shape[2], q_tile)
        sizes = cube_sizes(*self._cut(context))
        beside = context.length - sum(sizes)
        sizes = (*sizes, beside) if beside else sizes
        offsets = torch.tensor([0, *sizes], device=k.device).cumsum(0).int()[None, None]
        return rows, Tiling.variable(offsets, k.shape[2])

    def mask(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Tensor:
        """See `MaskPlanner`."""
        _, columns = self.tilings(q, k, context)
        means, share = mean_keys(k, columns, context.key_mask)
        empty = None if share is None else share == 0
        beside = self.cube(context) is not None and self._grid_tokens(context) < context.length
        if beside:  # what is beside the grid is kept, and takes no part in the choice
            last = torch.arange(columns.tiles, device=q.device) == columns.tiles - 1
            empty = last[None, None] if empty is None else empty | last
        own = columns.tile_of_token(q.device)[0, 0]
        tile, threshold = self.config.q_tile, self.density_setting(context)
        step = max(1, _CHUNK // (q.shape[0] * q.shape[1] * columns.tiles * tile)) * tile
        found = []
        for start in range(0, q.shape[2], step):
            part = q[:, :, start : start + step].float()
            kept = chunks_of(
                grouped_product(part, means), own[start : start + step], threshold, empty
            )
            kept = F.pad(kept, (0, 0, 0, -part.shape[2] % tile))
            found.append(kept.unflatten(2, (-1, tile)).any(3))
        mask = torch.cat(found, 2)
        mask[..., -1] |= beside
        return mask

    def _grid_tokens(self, context: LayerContext) -> int:
        return sum(cube_sizes(*self._cut(context)))

    def _cut(self, context: LayerContext) -> tuple[Grid, Grid]:
        """The grid that is cut into chunks, and the chunk."""
        grid, cube = context.grid, self.cube(context)
        assert grid is not None and cube is not None
        if "first_frame" in self.config.sinks and grid[0] > 1:
            grid = (grid[0] - 1, *grid[1:])
        return grid, cube


def chunks_of(scores: Tensor, own: Tensor, threshold: float, empty: Tensor | None) -> Tensor:
    """The chunks that each query keeps, bool like its scores.

    Args:
        scores: of the mean keys, `(B, H, M, T)`; whatever scale they have makes no difference.
        own: chunk of each query, int `(M,)`.
        threshold: share of the sum of the scores.
        empty: bool `(B, 1, T)`, chunks without keys that count; None for none.
    """
    if empty is not None:
        scores = scores.masked_fill(empty[:, :, None], torch.inf)
    low = scores.amin(-1, keepdim=True)
    if empty is not None:
        scores = scores.masked_fill(empty[:, :, None], -torch.inf)
    high = scores.amax(-1, keepdim=True)
    weights = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(min=0)
    is_own = F.one_hot(own, scores.shape[-1]).bool()
    # its own chunk comes first
    order = (
        weights.masked_fill(is_own, torch.inf).sort(dim=-1, descending=True, stable=True).indices
    )
    ordered = weights.gather(-1, order)
    before = ordered.cumsum(-1) - ordered
    keep = (before < threshold * ordered.sum(-1, keepdim=True)) | (threshold >= 1.0)
    keep[..., 0] = True
    return torch.zeros_like(keep).scatter_(-1, order, keep)
