"""SVG2: semantic-aware permutation (Sparse VideoGen 2).

Queries and keys are clustered by k-means, tokens are put in the order of their clusters, and a
query cluster attends to the key clusters that carry most of its softmax mass, estimated from the
centroids. Tiles are the clusters, so they vary in size. Paper: arXiv 2505.18875. Beyond it: state
per guidance branch that ends with the generation, clusterings that serve several steps, and
`compensate`: what a query cluster skips is put under the same softmax as one mean key and value
per cluster (compare SVG-EAR, arXiv 2603.08982).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import method, require
from ..kernels import (
    TileAttentionOutput,
    TileCentroids,
    TileMap,
    Tiling,
    kmeans,
    order_by_label,
)
from ..kernels.segments import segment_sums
from ._options import check_backend, check_dense, in_dense_part
from .planner import Dense, LayerContext, Plan, State

# Published: 300 query and 1000 key clusters on 75,600 tokens.
_Q_TOKENS_PER_CLUSTER = 252
_K_TOKENS_PER_CLUSTER = 76
# Short sequences need finer ones. Keys most: what is skipped is as good as its centroids.
_LEAST_Q_CLUSTERS = 16
_LEAST_K_CLUSTERS = 1024


@method("svg2", kind="attention")
@dataclass(frozen=True)
class SVG2Config:
    """Semantic clusters as tiles.

    Args:
        q_clusters: clusters of the queries; None for one per 252 tokens, as published for 720p, but
            at least 16.
        k_clusters: clusters of the keys; None for one per 76 tokens, but at least 1024, or one per
            8 tokens where there are fewer than 8192.
        top_p: softmax mass, as the centroids tell it, that a query cluster keeps, in (0, 1].
        min_share: least share of the key clusters that a query cluster keeps, in [0, 1].
        first_iterations: k-means iterations when a generation begins to be sparse. Published: 50;
            on shapes-wan the error of a layer's output stops falling at 10.
        iterations: k-means iterations per clustering afterwards, from the last centroids.
        refresh: steps that one clustering serves; the map is made anew at every step.
        max_age: steps that centroids may be old (a cache forecasts some steps); then k-means
            starts afresh.
        compensate: let the mean key and value of every skipped cluster stand for it.
        dense_steps: first steps that stay dense: a number, or a share of the steps below 1.
        dense_layers: first layers that stay dense, likewise.
        min_tokens: shorter sequences stay dense.
        break_even: kept share of the attention matrix above which a layer is dense for some steps;
            None for 0.7 on a CPU and 0.97 elsewhere, 1 for never.
        backend: of the kernel: `auto`, `triton`, `torch` or `naive`.
    """

    q_clusters: int | None = None
    k_clusters: int | None = None
    top_p: float = 0.9
    min_share: float = 0.1
    first_iterations: int = 10
    iterations: int = 2
    refresh: int = 4
    max_age: int = 8
    compensate: bool = True
    dense_steps: int | float = 0.2
    dense_layers: int | float = 0.03
    min_tokens: int = 1024
    break_even: float | None = None
    backend: str = "auto"

    def __post_init__(self) -> None:
        for name in ("q_clusters", "k_clusters"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}; it must be 1 or more")
        require(0.0 < self.top_p <= 1.0, f"top_p is {self.top_p}; it is a share in (0, 1]")
        require(
            0.0 <= self.min_share <= 1.0, f"min_share is {self.min_share}; it is a share in [0, 1]"
        )
        for name in ("first_iterations", "iterations", "refresh", "max_age"):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}; it must be 1 or more")
        check_dense(self)
        check_backend(self.backend)

    def planner(self) -> SVG2Planner:
        """What the seam carries out."""
        return SVG2Planner(self)


@dataclass(frozen=True, eq=False)
class _Side:
    """One clustering of queries or keys.

    Attributes:
        labels: int32 `(B, H, L)`; text tokens have the label `clusters`.
        order: int32 `(B, H, L)`, tokens by label.
        offsets: int32 `(B, H, clusters + 1 [+ 1 with text])`.
        clusters: number of clusters, text not counted.
    """

    labels: Tensor
    order: Tensor
    offsets: Tensor
    clusters: int

    @property
    def sizes(self) -> Tensor:
        """Tokens of each cluster, float32 `(B, H, clusters [+ 1])`."""
        return self.offsets.diff(dim=-1).float()

    def means(self, x: Tensor) -> Tensor:
        """Mean token of each cluster, float32 `(B, H, clusters [+ 1], D)`; 0 for an empty one."""
        sizes = self.sizes
        return segment_sums(x, self.labels, sizes.shape[-1]) / sizes.clamp(min=1)[..., None]


class SVG2Planner:
    """Keeps centroids (and, for `refresh`, labels) per layer and branch between steps."""

    def __init__(self, config: SVG2Config) -> None:
        self.config = config
        self.least_tokens = config.min_tokens
        self.least_steps = 2
        self.break_even = config.break_even
        self.backend = None if config.backend == "auto" else config.backend

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan | Dense:
        """See `Planner`."""
        config = self.config
        dense = in_dense_part(config, context)
        if dense is not None:
            return dense
        index, length = context.step.index, context.length
        start, end = _video(context)
        tokens = end - start
        counts = [
            config.q_clusters or _count(tokens, _Q_TOKENS_PER_CLUSTER, _LEAST_Q_CLUSTERS, 4),
            config.k_clusters or _count(tokens, _K_TOKENS_PER_CLUSTER, _LEAST_K_CLUSTERS, 8),
        ]
        for name, count in zip(("q_clusters", "k_clusters"), counts, strict=True):
            require(
                count <= tokens,
                f"{name} is {count}, but there are only {tokens} video tokens; use fewer clusters",
            )
        if index - state.get("index", index) > config.max_age:
            for key in ("centroids", "sides"):
                state.pop(key, None)
        reuse = "sides" in state and index - state["clustered"] < config.refresh
        if not reuse:
            state["sides"] = self._cluster(q, k, counts, context, state)
            state["clustered"] = index
        state["index"] = index
        q_side, k_side = state["sides"]
        q_means, k_means = q_side.means(q), k_side.means(k)
        kept = kept_clusters(
            q_means[:, :, : q_side.clusters],
            k_means[:, :, : k_side.clusters],
            k_side.sizes[..., : k_side.clusters],
            scale,
            config.top_p,
            config.min_share,
        )
        if context.text is not None:
            # text: one more cluster that attends to all, and that all attend to
            kept = torch.nn.functional.pad(kept, (0, 1, 0, 1), value=True)
        group = q.shape[1] // k.shape[1]
        tile_map = TileMap.from_mask(
            kept,
            Tiling.variable(q_side.offsets, length),
            Tiling.variable(k_side.offsets.repeat_interleave(group, 1), length),
        )
        return Plan(
            tile_map,
            "same clusters" if reuse else "new clusters",
            q_order=q_side.order,
            k_order=k_side.order,
            centroids=TileCentroids(k_means, k_side.means(v)) if config.compensate else None,
        )

    def _cluster(
        self, q: Tensor, k: Tensor, counts: list[int], context: LayerContext, state: State
    ) -> tuple[_Side, _Side]:
        config = self.config
        start, end = _video(context)
        known = state.get("centroids", (None, None))
        iterations = config.first_iterations if known[0] is None else config.iterations
        sides, centroids = [], []
        for x, count, warm in zip((q, k), counts, known, strict=True):
            # k-means draws from a generator of its own: the pipeline's noise is left alone
            found = kmeans(x[:, :, start:end], count, iterations, centroids=warm)
            labels = found.labels
            if context.text is not None:
                before, after = start, context.length - end
                labels = torch.nn.functional.pad(labels, (before, after), value=count)
            order, offsets = order_by_label(labels, count + (context.text is not None))
            sides.append(_Side(labels, order, offsets, count))
            centroids.append(found.centroids)
        state["centroids"] = tuple(centroids)
        return sides[0], sides[1]

    def update(self, plan: Plan, result: TileAttentionOutput, state: State) -> None:
        """Nothing to learn: the map is made anew from the next queries and keys."""


def _count(tokens: int, per_cluster: int, least: int, smallest: int) -> int:
    """Clusters by default; never so many that they hold less than `smallest` tokens on average."""
    return max(1, min(max(least, round(tokens / per_cluster)), tokens // smallest))


def _video(context: LayerContext) -> tuple[int, int]:
    """First and last-but-one of the tokens that are not text."""
    if context.text is None:
        return 0, context.length
    start, end = context.text
    return (end, context.length) if start == 0 else (0, start)


def kept_clusters(
    q_means: Tensor, k_means: Tensor, k_sizes: Tensor, scale: float, top_p: float, min_share: float
) -> Tensor:
    """Return the key clusters that each query cluster keeps.

    The softmax over key centroids weighs each by its number of keys; clusters are taken from the
    heaviest down until `top_p` is reached, the one that crosses it included.

    Args:
        q_means: `(B, H, Cq, D)`.
        k_means: `(B, Hkv, Ck, D)`.
        k_sizes: `(B, Hkv, Ck)`; empty clusters get no mass.
        scale: of the softmax.
        top_p: mass to keep.
        min_share: least share of clusters to keep, rounded down.

    Returns:
        bool `(B, H, Cq, Ck)`.
    """
    group = q_means.shape[1] // k_means.shape[1]
    k_means, k_sizes = (x.repeat_interleave(group, 1) for x in (k_means, k_sizes))
    scores = q_means.float() @ k_means.float().transpose(-1, -2) * scale
    weights = (scores + k_sizes.float().log()[..., None, :]).softmax(-1)
    ordered, order = weights.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    rank = torch.arange(ordered.shape[-1], device=ordered.device)
    least = max(1, math.floor(min_share * ordered.shape[-1]))
    # rounding brings the sum of weights to 1 before the last cluster that has any
    keep = (before < (top_p if top_p < 1.0 else torch.inf)) | (rank < least)
    return torch.zeros_like(keep).scatter_(-1, order, keep)
