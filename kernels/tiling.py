"""How the tokens of a sequence are cut into tiles: fixed size, or variable (clusters)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Tiling:
    """Cuts one axis of the attention matrix into tiles.

    Build it with `Tiling.fixed` or `Tiling.variable`.

    Attributes:
        length: tokens on the axis.
        tile: size of every tile but the last, which may be shorter; None when tiles vary.
        offsets: int32 `(B|1, H|1, T + 1)` prefix sums: tile `t` holds the tokens from
            `offsets[..., t]` to `offsets[..., t + 1]` (none, when they are equal); None when the
            size is fixed. A dimension of size 1 is shared.
    """

    length: int
    tile: int | None = None
    offsets: Tensor | None = None

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length must be at least 1, got {self.length}")
        if (self.tile is None) == (self.offsets is None):
            raise ValueError("give either tile (fixed size) or offsets (variable), not both")
        if self.tile is not None and self.tile < 1:
            raise ValueError(f"tile must be at least 1, got {self.tile}")
        if self.offsets is not None:
            if self.offsets.dtype != torch.int32:
                raise TypeError(f"offsets must be int32, got {self.offsets.dtype}")
            if self.offsets.ndim != 3 or self.offsets.shape[-1] < 2:
                raise ValueError(
                    "offsets must have the shape (B or 1, H or 1, tiles + 1), got "
                    f"{tuple(self.offsets.shape)}"
                )

    @classmethod
    def fixed(cls, length: int, tile: int) -> Tiling:
        """Tiles of `tile` tokens; the last one holds what is left."""
        return cls(length=length, tile=tile)

    @classmethod
    def variable(cls, offsets: Tensor, length: int) -> Tiling:
        """Tiles given by their prefix sums; `length` is the last one (known without a sync)."""
        return cls(length=length, offsets=offsets)

    @property
    def is_fixed(self) -> bool:
        """Whether all tiles but the last have one size."""
        return self.tile is not None

    @property
    def tiles(self) -> int:
        """Number of tiles, empty ones included."""
        if self.tile is not None:
            return -(-self.length // self.tile)
        assert self.offsets is not None
        return self.offsets.shape[-1] - 1

    def bounds(self, device: torch.device | str) -> Tensor:
        """Prefix sums int32 `(B|1, H|1, T + 1)`, for fixed tiles too."""
        if self.offsets is not None:
            return self.offsets.to(device)
        assert self.tile is not None
        bounds = torch.arange(self.tiles + 1, dtype=torch.int32, device=device) * self.tile
        return bounds.clamp_(max=self.length).view(1, 1, -1)

    def sizes(self, device: torch.device | str) -> Tensor:
        """Tokens of each tile, int32 `(B|1, H|1, T)`."""
        return self.bounds(device).diff(dim=-1)

    def tile_of_token(self, device: torch.device | str) -> Tensor:
        """The tile that holds each token, int64 `(B|1, H|1, length)`."""
        tokens = torch.arange(self.length, dtype=torch.int32, device=device)
        if self.tile is not None:
            return (tokens // self.tile).long().view(1, 1, -1)
        bounds = self.bounds(device)
        tokens = tokens.expand(*bounds.shape[:2], -1).contiguous()
        return torch.searchsorted(bounds[..., 1:].contiguous(), tokens, right=True)

    def validate(self, name: str = "tiling") -> None:
        """Check the values of `offsets`; copies them to the CPU.

        Raises:
            ValueError: they do not start at 0, fall, or do not end at `length`.
        """
        if self.offsets is None:
            return
        offsets = self.offsets.cpu()
        if bool((offsets[..., 0] != 0).any()):
            raise ValueError(f"{name}: offsets must start at 0")
        if bool((offsets.diff(dim=-1) < 0).any()):
            raise ValueError(f"{name}: offsets must not fall; they are prefix sums of tile sizes")
        if bool((offsets[..., -1] != self.length).any()):
            raise ValueError(
                f"{name}: offsets must end at the length {self.length}, got "
                f"{sorted(set(offsets[..., -1].flatten().tolist()))}"
            )

    def touched(
        self, ranges: Sequence[tuple[int, int]], device: torch.device | str, name: str = "ranges"
    ) -> Tensor:
        """Mark the tiles that hold a token of one of the ranges.

        A range is widened to whole tiles: its start is rounded down and its end up.

        Args:
            ranges: `(start, end)` in tokens, end exclusive, ascending and apart from each other.
            device: where the answer goes.
            name: of the argument, for the message.

        Returns:
            bool `(B|1, H|1, T)`.

        Raises:
            ValueError: a range is empty, reaches outside of the sequence, or starts before the
                one ahead of it ends.
        """
        check_ranges(ranges, self.length, name)
        bounds = self.bounds(device)
        starts, ends = bounds[..., :-1], bounds[..., 1:]
        touched = torch.zeros_like(starts, dtype=torch.bool)
        for start, end in ranges:
            touched |= (starts < end) & (ends > start) & (ends > starts)
        return touched


def check_ranges(ranges: Sequence[tuple[int, int]], length: int, name: str) -> None:
    """Raise ValueError unless `ranges` are ascending, disjoint, and inside `length` tokens."""
    previous = 0
    for start, end in ranges:
        if not 0 <= start < end <= length:
            raise ValueError(
                f"{name}: the range ({start}, {end}) must hold a token and lie inside the "
                f"sequence of {length}"
            )
        if start < previous:
            raise ValueError(
                f"{name}: the range ({start}, {end}) starts before the one ahead of it ends at "
                f"{previous}; give them ascending and without overlap"
            )
        previous = end
