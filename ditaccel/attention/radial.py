"""Radial attention: what attends from frame to frame becomes less with the distance in time.

For frames of f tokens at a distance of d, with the number of bits g of d, let l = 2^bits(f) / 2^g.
A token attends to those whose place in their frame is at most a window away: f for d = 0; a share
of f for d = 1; and l times `decay` for more, but at least one tile. Where l is less than a tile,
only frames at a distance that int(tile / l) divides are kept. Text attends to all, and all attend
to it. Paper: arXiv 2506.19852.

A tile is kept as in the authors' code, for each pair of frames on its own: if over 60 % of its key
tokens that anything attends to are attended to by over a third of its queries. Ours: the last tile
counts as many queries as it has, and each tile attends to itself, so that no row is empty; in a
picture, rows stand for frames, and frames that are smaller than a tile are joined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config import Example, method, require
from ..kernels import Tiling
from .engine.frames import Frames
from .engine.options import FixedTileOptions, Swept
from .engine.planner import LayerContext, State
from .engine.tile_planner import MaskPlanner

# Of the authors' rule: the queries that make a key count, and the keys that make a tile count.
_QUERIES, _KEYS = 1 / 3, 0.6
# Elements of the largest tensors that are held at once.
_CHUNK = 1 << 24
_PUBLISHED: dict[str, Any] = {
    "dense_steps": 12,
    "thin_out": True,
    "q_tile": 128,
    "k_tile": 128,
    "min_tokens": 0,
    "break_even": 1.0,
}


@method("radial", paper="2506.19852")
@dataclass(frozen=True, kw_only=True)
class RadialConfig(FixedTileOptions):
    """Windows from frame to frame that halve with each doubling of the distance in time.

    Options that all methods share are described in `TileOptions`; the authors' sink for Wan is
    `sinks=("first_frame",)`. The map follows from the size alone: it is made once per generation,
    and is the same for all heads.

    Args:
        decay: factor of the windows of frames at a distance of two or more. Larger is slower and
            nearer to dense. Published: 0.2 for Wan, 1 for HunyuanVideo.
        neighbor: window of adjacent frames, as a share of the tokens of a frame. Published: 0.5 for
            Wan, 1 for HunyuanVideo.
        thin_out: whether far frames are kept only periodically, as published.
        q_tile: query tokens per tile. Published: 128.
        k_tile: key tokens per tile. Published: 128.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "wan": {
            **_PUBLISHED,
            "decay": 0.2,
            "neighbor": 0.5,
            "sinks": ("first_frame",),
            "dense_layers": 1,
        },
        "hunyuan_video": {**_PUBLISHED, "decay": 1.0, "neighbor": 1.0},
    }
    density_option: ClassVar[str] = "decay"
    swept: ClassVar[Swept] = Swept("decay", (0.05, 0.2, 0.5, 1.0, 2.0, 4.0))

    decay: float = 0.2
    neighbor: float = 0.5
    thin_out: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.decay >= 0, f"decay is {self.decay:g}; it must be 0 or more")
        require(
            0 <= self.neighbor <= 1,
            f"neighbor is {self.neighbor:g}; it is a share of a frame, from 0 to 1",
        )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        small = cls(q_tile=16, k_tile=16, min_tokens=0, dense_steps=0, break_even=1.0)
        exact = replace(small, decay=1e6, neighbor=1.0, thin_out=False)
        return (Example(exact, replace(small, decay=0.1, neighbor=0.1)),)

    def planner(self) -> RadialPlanner:
        """What the seam carries out."""
        return RadialPlanner(self)


class RadialPlanner(MaskPlanner):
    """Makes one map per size."""

    serves = None

    def mask(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Tensor:
        """See `MaskPlanner`."""
        config = self.config
        tile = max(config.q_tile, config.k_tile)
        frames = Frames.of(context, tile)
        decay = self.density_setting(context)
        widths = tuple(
            window(d, frames.size, tile, decay, config.neighbor, config.thin_out)
            for d in range(frames.count)
        )
        return radial_tiles(frames, widths, context.length, config.q_tile, config.k_tile)


def window(
    distance: int, size: int, tile: int, decay: float, neighbor: float, thin_out: bool
) -> float:
    """How far apart places may be in frames at a distance; -1 for frames that are not kept.

    Args:
        distance: of the frames.
        size: tokens of a frame.
        tile: tokens of a tile.
        decay: see `RadialConfig`.
        neighbor: likewise.
        thin_out: likewise.
    """
    length = 2.0 ** size.bit_length() / 2.0 ** distance.bit_length()
    if thin_out and length < tile and distance % int(tile / length) != 0:
        return -1
    if distance == 0:
        return size
    return size * neighbor // 1 if distance == 1 else max(length * decay, tile)


@lru_cache(maxsize=4)
def radial_tiles(
    frames: Frames, widths: tuple[float, ...], length: int, q_tile: int, k_tile: int
) -> Tensor:
    """The tiles that are kept by the authors' rule, bool `(Tq, Tk)`.

    Args:
        frames: of the sequence.
        widths: by the distance of frames, see `window`.
        length: of the sequence.
        q_tile: query tokens per tile.
        k_tile: key tokens per tile.
    """
    q_tiling, k_tiling = Tiling.fixed(length, q_tile), Tiling.fixed(length, k_tile)
    kept = torch.zeros(q_tiling.tiles, k_tiling.tiles, dtype=torch.bool)
    places = torch.arange(frames.start, frames.start + frames.tokens)
    inner = places - frames.start
    frame, at = inner // frames.size, inner % frames.size
    pieces = [_pieces(places // tile, frame, at) for tile in (q_tile, k_tile)]
    (rows, q_frame, first, last, _), (columns, *_, piece) = pieces
    table, sizes = torch.tensor(widths), q_tiling.sizes("cpu")[0, 0]
    step = max(1, _CHUNK // len(places))
    for some in torch.arange(len(rows)).split(step):
        width = table[(q_frame[some, None] - frame).abs()]
        # the queries of a piece that attend to each key
        low = torch.maximum(first[some, None].float(), at - width)
        high = torch.minimum(last[some, None].float(), at + width)
        count = (high.floor() - low.ceil() + 1).clamp(min=0) * (width >= 0)
        share = count / sizes[rows[some], None]
        seen, often = (
            torch.zeros(len(some), len(columns)).index_add_(1, piece, marks.float())
            for marks in (share > 0, share > _QUERIES)
        )
        at_rows, at_columns = (often > _KEYS * seen).nonzero(as_tuple=True)
        kept[rows[some[at_rows]], columns[at_columns]] = True
    own = torch.arange(length)
    kept[own // q_tile, own // k_tile] = True
    others = own[frames.labels(length) < 0]  # text, given images or frames
    kept[others // q_tile] = True
    kept[:, others // k_tile] = True
    return kept


def _pieces(tile: Tensor, frame: Tensor, at: Tensor) -> tuple[Tensor, ...]:
    """Runs of tokens that share a tile and a frame.

    Returns:
        Of each run, its tile, its frame, its first and its last place in the frame; and the run of
        each token.
    """
    begins = torch.ones_like(tile, dtype=torch.bool)
    begins[1:] = (tile.diff() != 0) | (frame.diff() != 0)
    number = begins.cumsum(0) - 1
    starts = begins.nonzero()[:, 0]
    ends = torch.cat([starts[1:] - 1, starts.new_tensor([len(tile) - 1])])
    return tile[starts], frame[starts], at[starts], at[ends], number
