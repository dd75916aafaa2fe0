"""Kernels and the tile format they share; imports torch, and triton only where a kernel runs."""

from .attention import (
    Marking,
    Precision,
    TileAttentionOutput,
    TileCentroids,
    merge_attention,
    tile_attention,
    tile_attention_backends,
)
from .clustering import Clusters, kmeans
from .moments import (
    TileMoments,
    moment_attention,
    moment_attention_backends,
    score_variance,
    tile_moments,
)
from .permutation import inverse_permute, order_by_label, permute
from .pooling import pool_tiles, pooled_scores
from .sparse_linear import (
    FEATURE_MAPS,
    FeatureMap,
    SparseLinearOutput,
    feature_map,
    sparse_linear_attention,
    sparse_linear_backends,
)
from .tile_map import TileMap, keep_keys, keep_queries, pack_mask, unpack_mask
from .tiling import Tiling

__all__ = [
    "FEATURE_MAPS",
    "Clusters",
    "FeatureMap",
    "Marking",
    "Precision",
    "SparseLinearOutput",
    "TileAttentionOutput",
    "TileCentroids",
    "TileMap",
    "TileMoments",
    "Tiling",
    "feature_map",
    "inverse_permute",
    "keep_keys",
    "keep_queries",
    "kmeans",
    "merge_attention",
    "moment_attention",
    "moment_attention_backends",
    "order_by_label",
    "pack_mask",
    "permute",
    "pool_tiles",
    "pooled_scores",
    "score_variance",
    "sparse_linear_attention",
    "sparse_linear_backends",
    "tile_attention",
    "tile_attention_backends",
    "tile_moments",
    "unpack_mask",
]
