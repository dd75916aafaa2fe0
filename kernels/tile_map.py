"""Which tiles of the attention matrix to compute: the one format of all attention methods.

A tile is a rectangle of the attention matrix: one query tile times one key tile. The map lists, for
each query tile, the key tiles to compute, in the order in which they are visited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .tiling import Tiling


@dataclass(frozen=True, eq=False)
class TileMap:
    """The tiles to compute.

    Query tile `i` of head `(b, h)` computes the key tiles `indices[b, h, i, :counts[b, h, i]]`, in
    that order. Entries beyond the counts are ignored. B or H of 1 is shared by all.

    Attributes:
        indices: int32 `(B|1, H|1, Tq, M)`, key tiles in visiting order.
        counts: int32 `(B|1, H|1, Tq)`, how many of them count; 0 is allowed.
        q_tiling: how the queries are cut into Tq tiles.
        k_tiling: how the keys are cut into Tk tiles.
    """

    indices: Tensor
    counts: Tensor
    q_tiling: Tiling
    k_tiling: Tiling
    _mask: Tensor | None = field(default=None, repr=False)  # what `from_mask` was given

    def __post_init__(self) -> None:
        for name, tensor, ndim in (("indices", self.indices, 4), ("counts", self.counts, 3)):
            if tensor.dtype != torch.int32:
                raise TypeError(f"{name} must be int32, got {tensor.dtype}")
            if tensor.ndim != ndim:
                raise ValueError(f"{name} must have {ndim} dimensions, got {tuple(tensor.shape)}")
        if self.indices.shape[:3] != self.counts.shape:
            raise ValueError(
                f"counts must have the shape {tuple(self.indices.shape[:3])} of indices without "
                f"the last dimension, got {tuple(self.counts.shape)}"
            )
        if self.indices.shape[2] != self.q_tiling.tiles:
            raise ValueError(
                f"indices lists {self.indices.shape[2]} query tiles, but q_tiling has "
                f"{self.q_tiling.tiles}"
            )
        tensors = {"counts": self.counts}
        for name, tiling in (("q_tiling", self.q_tiling), ("k_tiling", self.k_tiling)):
            if tiling.offsets is None:
                continue
            tensors[f"{name}.offsets"] = tiling.offsets
            for axis, (own, of_map) in enumerate(
                zip(tiling.offsets.shape[:2], self.indices.shape[:2], strict=True)
            ):
                if own != 1 and of_map not in (1, own):
                    raise ValueError(
                        f"{name} has {own} {('batch items', 'heads')[axis]}, but indices {of_map}"
                    )
        for name, tensor in tensors.items():
            if tensor.device != self.indices.device:
                raise ValueError(
                    f"{name} is on {tensor.device}, but indices on {self.indices.device}"
                )

    @classmethod
    def from_mask(cls, mask: Tensor, q_tiling: Tiling, k_tiling: Tiling) -> TileMap:
        """Visit the tiles that are True in `mask`, in ascending order.

        Nothing waits for the device: the lists are as long as there are key tiles.

        Args:
            mask: bool `(B|1, H|1, Tq, Tk)`; held, not copied.
            q_tiling: of the queries.
            k_tiling: of the keys.
        """
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, got {mask.dtype}")
        tiles = (q_tiling.tiles, k_tiling.tiles)
        if mask.ndim != 4 or tuple(mask.shape[-2:]) != tiles:
            raise ValueError(
                f"mask must have the shape (B or 1, H or 1, {tiles[0]}, {tiles[1]}), got "
                f"{tuple(mask.shape)}"
            )
        tile = torch.arange(mask.shape[-1], dtype=torch.int32, device=mask.device)
        kept_before = mask.cumsum(-1, dtype=torch.int32)
        counts = kept_before[..., -1]
        # Kept tiles go to the front and the others behind them: a permutation without a sort.
        place = torch.where(mask, kept_before - 1, counts[..., None] + tile - kept_before)
        indices = torch.empty(mask.shape, dtype=torch.int32, device=mask.device)
        indices.scatter_(-1, place.long(), tile.expand(mask.shape))
        return cls(indices, counts.contiguous(), q_tiling, k_tiling, mask)

    @classmethod
    def dense(
        cls, q_tiling: Tiling, k_tiling: Tiling, device: torch.device | str = "cpu"
    ) -> TileMap:
        """Every tile, for all batch items and heads."""
        tiles = torch.arange(k_tiling.tiles, dtype=torch.int32, device=device)
        indices = tiles.expand(1, 1, q_tiling.tiles, -1).contiguous()
        counts = torch.full(indices.shape[:3], k_tiling.tiles, dtype=torch.int32, device=device)
        return cls(indices, counts, q_tiling, k_tiling)

    @classmethod
    def from_block_mask(cls, block_mask: Any) -> TileMap:
        """Take over the blocks of a FlexAttention `BlockMask`.

        Raises:
            ValueError: it has blocks that are kept in part only; a tile is kept or not.
        """
        from torch.nn.attention.flex_attention import BlockMask, noop_mask

        if not isinstance(block_mask, BlockMask):
            raise TypeError(f"block_mask must be a BlockMask, got {type(block_mask).__name__}")
        parts: list[tuple[Any, Any]] = []
        if block_mask.full_kv_num_blocks is not None:
            parts.append((block_mask.full_kv_num_blocks, block_mask.full_kv_indices))
        if bool((block_mask.kv_num_blocks > 0).any()):
            if block_mask.mask_mod is not noop_mask:
                raise ValueError(
                    "block_mask has blocks that are kept in part only, which a tile map cannot "
                    "hold; keep whole blocks and hand the rest over as tile_attention(mask=...)"
                )
            parts.append((block_mask.kv_num_blocks, block_mask.kv_indices))
        (q_len, k_len), (q_tile, k_tile) = block_mask.seq_lengths, block_mask.BLOCK_SIZE
        q_tiling, k_tiling = Tiling.fixed(q_len, q_tile), Tiling.fixed(k_len, k_tile)
        shape = (*block_mask.kv_num_blocks.shape[:2], q_tiling.tiles, k_tiling.tiles)
        mask = torch.zeros(shape, dtype=torch.bool, device=block_mask.kv_num_blocks.device)
        for counts, indices in parts:
            mask |= _mask_of(indices, counts, k_tiling.tiles)
        return cls.from_mask(mask, q_tiling, k_tiling)

    @classmethod
    def unpack(cls, bits: Tensor, q_tiling: Tiling, k_tiling: Tiling) -> TileMap:
        """Undo `pack`; tiles are visited in ascending order."""
        return cls.from_mask(unpack_mask(bits, k_tiling.tiles), q_tiling, k_tiling)

    @property
    def device(self) -> torch.device:
        """Where the lists are."""
        return self.indices.device

    @property
    def q_len(self) -> int:
        """Query tokens."""
        return self.q_tiling.length

    @property
    def k_len(self) -> int:
        """Key tokens."""
        return self.k_tiling.length

    @property
    def q_tiles(self) -> int:
        """Query tiles Tq."""
        return self.q_tiling.tiles

    @property
    def k_tiles(self) -> int:
        """Key tiles Tk."""
        return self.k_tiling.tiles

    @property
    def is_fixed(self) -> bool:
        """Whether both axes have tiles of one size."""
        return self.q_tiling.is_fixed and self.k_tiling.is_fixed

    def to_mask(self) -> Tensor:
        """Kept tiles as bool `(B|1, H|1, Tq, Tk)`; the visiting order is lost."""
        if self._mask is not None:
            return self._mask
        return _mask_of(self.indices, self.counts, self.k_tiles)

    def to_block_mask(self) -> Any:
        """The same tiles as a FlexAttention `BlockMask`, all of them whole blocks.

        Raises:
            ValueError: tiles vary in size.
        """
        from torch.nn.attention.flex_attention import BlockMask

        if self.q_tiling.tile is None or self.k_tiling.tile is None:
            raise ValueError("FlexAttention has no tiles of variable size; use tile_attention")
        indices = torch.nn.functional.pad(
            self.indices[..., : self.k_tiles], (0, max(0, self.k_tiles - self.indices.shape[-1]))
        )
        return BlockMask.from_kv_blocks(
            torch.zeros_like(self.counts),
            torch.zeros_like(indices),
            self.counts,
            indices,
            BLOCK_SIZE=(self.q_tiling.tile, self.k_tiling.tile),
            seq_lengths=(self.q_len, self.k_len),
            compute_q_blocks=False,
        )

    def reversed(self) -> TileMap:
        """The same tiles, visited back to front."""
        place = torch.arange(self.indices.shape[-1], device=self.device)
        last_first = self.counts[..., None].long() - 1 - place
        indices = self.indices.gather(-1, torch.where(last_first >= 0, last_first, place))
        return TileMap(indices, self.counts, self.q_tiling, self.k_tiling, self._mask)

    def pack(self) -> Tensor:
        """Kept tiles as bits, uint8 `(B|1, H|1, Tq, ceil(Tk / 8))`: a state that is cheap to keep.

        The lists take 32 times as much.
        """
        return pack_mask(self.to_mask())

    def densities(self, weighted: bool = True) -> Tensor:
        """Kept share per head, float64 `(B, H)`; see `density`."""
        kept = self.to_mask().double()
        if weighted:
            kept = kept * self.q_tiling.sizes(self.device)[..., :, None]
            kept = kept * self.k_tiling.sizes(self.device)[..., None, :]
            return kept.sum((-1, -2)) / (self.q_len * self.k_len)
        return kept.mean((-1, -2))

    def density(self, weighted: bool = True) -> float:
        """Computed share of the attention matrix; waits for the device.

        Args:
            weighted: count pairs of tokens, so that a tile counts by its size; False counts tiles.
        """
        return float(self.densities(weighted).mean())

    def validate(self) -> None:
        """Check what needs the values; copies them to the CPU, so not for every call.

        Raises:
            ValueError: a count or a tile is out of range, a tile is listed twice, or offsets are no
                prefix sums of the length.
        """
        self.q_tiling.validate("q_tiling")
        self.k_tiling.validate("k_tiling")
        indices, counts = self.indices.cpu(), self.counts.cpu()
        if bool(((counts < 0) | (counts > indices.shape[-1])).any()):
            raise ValueError(
                f"counts must lie between 0 and {indices.shape[-1]}, the length of the lists; got "
                f"{int(counts.min())} to {int(counts.max())}"
            )
        valid = torch.arange(indices.shape[-1]) < counts[..., None]
        listed = indices[valid]
        if listed.numel() and (int(listed.min()) < 0 or int(listed.max()) >= self.k_tiles):
            raise ValueError(
                f"indices must lie between 0 and {self.k_tiles - 1}, the last key tile; got "
                f"{int(listed.min())} to {int(listed.max())}"
            )
        if not torch.equal(_mask_of(indices, counts, self.k_tiles).sum(-1), counts.long()):
            raise ValueError("indices lists a key tile twice for one query tile; list it once")


def _mask_of(indices: Tensor, counts: Tensor, tiles: int) -> Tensor:
    """Lists to bool `(..., tiles)`; entries beyond the count go to an extra column."""
    valid = torch.arange(indices.shape[-1], device=indices.device) < counts[..., None]
    mask = torch.zeros((*counts.shape, tiles + 1), dtype=torch.bool, device=indices.device)
    mask.scatter_(-1, torch.where(valid, indices, tiles).long(), True)
    return mask[..., :tiles]


def pack_mask(mask: Tensor) -> Tensor:
    """Eight tiles to a byte, lowest bit first.

    Args:
        mask: bool `(..., T)`.

    Returns:
        uint8 `(..., ceil(T / 8))`.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}")
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (0, -mask.shape[-1] % 8))
    place = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (padded.unflatten(-1, (-1, 8)) << place).sum(-1, dtype=torch.uint8)


def unpack_mask(bits: Tensor, tiles: int) -> Tensor:
    """Undo `pack_mask`.

    Args:
        bits: uint8 `(..., ceil(tiles / 8))`.
        tiles: the length T of the mask.
    """
    if bits.dtype != torch.uint8:
        raise TypeError(f"bits must be uint8, got {bits.dtype}")
    if bits.shape[-1] != -(-tiles // 8):
        raise ValueError(
            f"bits holds {bits.shape[-1]} bytes, but {tiles} tiles need {-(-tiles // 8)}"
        )
    place = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[..., None] >> place) & 1).flatten(-2)[..., :tiles].bool()


def keep_keys(mask: Tensor, ranges: Sequence[tuple[int, int]], k_tiling: Tiling) -> Tensor:
    """Keep every tile that holds a key of `ranges` (text, sinks), for all queries.

    Args:
        mask: bool `(B|1, H|1, Tq, Tk)`.
        ranges: `(start, end)` in tokens, end exclusive, ascending, without overlap; each is widened
            to whole tiles.
        k_tiling: of the keys.

    Returns:
        A new mask; B and H grow to those of variable tiles.
    """
    return mask | k_tiling.touched(ranges, mask.device)[..., None, :]


def keep_queries(mask: Tensor, ranges: Sequence[tuple[int, int]], q_tiling: Tiling) -> Tensor:
    """Keep all keys for every query tile that holds a query of `ranges`; see `keep_keys`."""
    return mask | q_tiling.touched(ranges, mask.device)[..., :, None]
