"""Kernels and the tile format they share; imports torch, and triton only where a kernel runs."""

from .attention import Marking, TileAttentionOutput, merge_attention, tile_attention, why
from .tile_map import TileMap, keep_keys, keep_queries, pack_mask, unpack_mask
from .tiling import Tiling

__all__ = [
    "Marking",
    "TileAttentionOutput",
    "TileMap",
    "Tiling",
    "keep_keys",
    "keep_queries",
    "merge_attention",
    "pack_mask",
    "tile_attention",
    "unpack_mask",
    "why",
]
