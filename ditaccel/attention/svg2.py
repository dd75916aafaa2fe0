"""SVG2: semantic-aware permutation (Sparse VideoGen 2).

Queries and keys are clustered by k-means, tokens are put in the order of their clusters, and a
query cluster attends to the key clusters that carry most of its softmax mass, estimated from the
centroids. Tiles are the clusters, so they vary in size. Paper: arXiv 2505.18875. Beyond it (ours;
`published:svg2` switches it off): clusterings that serve several steps, fewer first iterations,
more clusters on short sequences, and `compensate`: what a query cluster skips is put under the same
softmax as one mean key and value per cluster, and clusters are kept by the error that this would
make instead of by their mass (compare SVG-EAR, arXiv 2603.08982). State is kept per guidance branch
and ends with the generation, and k-means starts from tokens drawn without repetition by a private
generator, the same places in all heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config import Example, method, require
from ..kernels import TileMap, TileMoments, Tiling, kmeans, order_by_label
from ..kernels.segments import segment_sums
from .engine.options import Swept, TileOptions
from .engine.order import OrderPerHead
from .engine.planner import LayerContext, Plan, State, TileStats
from .engine.rest.moments import key_weights, loss_of_means, segment_moments
from .engine.scores import smallest_set
from .engine.tile_planner import TilePlanner, marked_tokens

# Published: 300 query and 1000 key clusters on 75,600 tokens.
_Q_TOKENS_PER_CLUSTER = 252
_K_TOKENS_PER_CLUSTER = 76
# Short sequences need finer ones. Keys most: what is skipped is as good as its centroids.
_LEAST_Q_CLUSTERS = 16
_LEAST_K_CLUSTERS = 1024
# What the authors' scripts have in common; cluster counts and dense steps are for 720p.
_PUBLISHED: dict[str, Any] = {
    "k_clusters": 1000,
    "top_p": 0.9,
    "min_share": 0.1,
    "first_iterations": 50,
    "iterations": 2,
    "refresh": 1,
    "max_age": 1000,
    "compensate": False,
    "dense_layers": 0.03,
    "min_tokens": 0,
    "break_even": 1.0,
}


@method("svg2", paper="2505.18875")
@dataclass(frozen=True, kw_only=True)
class SVG2Config(TileOptions):
    """Clusters of tokens as tiles: each of queries keeps those of keys that matter most to it.

    Options that all methods share are described in `TileOptions`; here `rest` is `means` where
    `compensate` is on and `nothing` where it is off, by default.

    Args:
        q_clusters: clusters of the queries; None for one per 252 tokens, as published for Wan at
            720p (300), but at least 16.
        k_clusters: clusters of the keys; None for one per 76 tokens (published: 1000), but at least
            1024, or one per 8 tokens where there are fewer than 8192.
        top_p: softmax mass, as the centroids tell it, that a query cluster keeps, in (0, 1]; with
            `compensate`, share of the error that the means would make. Published: 0.9, of the mass.
        min_share: least share of the key clusters that a query cluster keeps, in [0, 1].
            Published: 0.1.
        first_iterations: k-means iterations when a generation begins to be sparse. Published: 50.
        iterations: k-means iterations per clustering afterwards, from the last centroids.
            Published: 2.
        refresh: steps that one clustering serves; each step has a map of its own. Published: 1.
        max_age: steps that centroids may be old (a cache forecasts some steps); then k-means
            starts afresh.
        cluster_when_dense: run k-means in the first, dense steps too, so that the first sparse step
            starts from warm centroids, as published for HunyuanVideo and for image-to-video at
            480p.
        compensate: keep clusters by the error that their means would make (ours), and let the means
            of skipped clusters stand for them, unless `rest` says otherwise. False keeps clusters
            by their mass and puts nothing in place of the others, as published.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "wan": {**_PUBLISHED, "q_clusters": 300, "dense_steps": 0.2},
        "hunyuan_video": {
            **_PUBLISHED,
            "q_clusters": 400,
            "dense_steps": 0.1,
            "cluster_when_dense": True,
        },
        "cosmos": {**_PUBLISHED, "q_clusters": 400, "dense_steps": 0.3},
    }

    swept: ClassVar[Swept] = Swept(
        "top_p", (0.15, 0.3, 0.45, 0.6, 0.75, 0.85, 0.92), {"min_share": 0.0}
    )

    q_clusters: int | None = None
    k_clusters: int | None = None
    top_p: float = 0.9
    min_share: float = 0.1
    first_iterations: int = 10
    iterations: int = 2
    refresh: int = 4
    max_age: int = 8
    cluster_when_dense: bool = False
    compensate: bool = True
    dense_layers: int | float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
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

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        few = cls(
            q_clusters=4, k_clusters=8, min_tokens=0, dense_steps=0, dense_layers=0, break_even=1.0
        )
        return (Example(replace(few, top_p=1.0), replace(few, top_p=0.3, min_share=0.0)),)

    def planner(self) -> SVG2Planner:
        """What the seam carries out."""
        return SVG2Planner(self)


@dataclass(frozen=True, eq=False)
class _Side:
    """One clustering of queries or keys.

    Attributes:
        labels: int32 `(B, H, L)`; those of text and sinks have the label `clusters`.
        order: int32 `(B, H, L)`, tokens by label.
        offsets: int32 `(B, H, clusters + 1 [+ 1 with others])`.
        clusters: number of clusters, the one of text and sinks not counted.
        others: tokens of text and sinks.
    """

    labels: Tensor
    order: Tensor
    offsets: Tensor
    clusters: int
    others: int

    @property
    def sizes(self) -> Tensor:
        """Tokens of each cluster, float32 `(B, H, clusters [+ 1])`."""
        return self.offsets.diff(dim=-1).float()

    def means(self, x: Tensor) -> Tensor:
        """Mean token of each cluster, float32 `(B, H, clusters [+ 1], D)`; 0 for an empty one."""
        sizes = self.sizes
        return segment_sums(x, self.labels, sizes.shape[-1]) / sizes.clamp(min=1)[..., None]

    def moments(self, k: Tensor, v: Tensor, key_mask: Tensor | None) -> TileMoments:
        """Of the keys and values of each cluster, text included."""
        tiles = self.offsets.shape[-1] - 1
        return segment_moments(k, v, self.labels, tiles, key_weights(key_mask, k))


class SVG2Planner(TilePlanner):
    """Keeps centroids (and, for `refresh`, labels) per layer and branch between steps."""

    planning = 0.08

    def __init__(self, config: SVG2Config) -> None:
        super().__init__(config)
        self.least_steps, self.max_age = 2, config.max_age
        self.rest = config.rest or ("means" if config.compensate else "nothing")

    def warm_up(
        self, q: Tensor, k: Tensor, scale: float, context: LayerContext, state: State
    ) -> None:
        """See `TilePlanner`."""
        if self.config.cluster_when_dense:
            self._clustered(q, k, context, state)

    def _clustered(self, q: Tensor, k: Tensor, context: LayerContext, state: State) -> bool:
        """Bring the clustering of a layer up to date; returns whether the last one still serves."""
        config, index = self.config, context.step.index
        chosen = self._clustered_tokens(context, q.device)
        tokens = context.length if chosen is None else len(chosen)
        counts = [
            config.q_clusters or _count(tokens, _Q_TOKENS_PER_CLUSTER, _LEAST_Q_CLUSTERS, 4),
            config.k_clusters or _count(tokens, _K_TOKENS_PER_CLUSTER, _LEAST_K_CLUSTERS, 8),
        ]
        for name, count in zip(("q_clusters", "k_clusters"), counts, strict=True):
            require(
                count <= tokens,
                f"{name} is {count}, but there are only {tokens} video tokens; use fewer clusters",
            )
        reuse = "sides" in state and index - state["clustered"] < config.refresh
        if not reuse:
            state["sides"] = self._cluster(q, k, counts, chosen, state)
            state["clustered"] = index
        return reuse

    def sparse(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan:
        """See `TilePlanner`."""
        config, length = self.config, context.length
        reuse = self._clustered(q, k, context, state)
        q_side, k_side = state["sides"]
        q_means = q_side.means(q)
        stats, k_means = None, None
        if config.compensate or self.rest != "nothing":
            stats = TileStats(q_means, k_side.moments(k, v, context.key_mask))
            k_means = stats.moments.keys
        if k_means is None:
            k_means = k_side.means(k)
        video = (slice(None), slice(None), slice(q_side.clusters), slice(k_side.clusters))
        weights = cluster_mass(
            q_means[:, :, : q_side.clusters],
            k_means[:, :, : k_side.clusters],
            k_side.sizes[..., : k_side.clusters],
            scale,
        )
        if config.compensate and stats is not None:
            weights = weights * loss_of_means(*stats, scale)[video]
        kept = kept_clusters(weights, self.density_setting(context), config.min_share)
        if q_side.others:
            # text and sinks: one more cluster that attends to all, and that all attend to
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
            order=OrderPerHead(q_side.order, k_side.order),
            rest=self.rest,
            stats=stats,
        )

    def _clustered_tokens(self, context: LayerContext, device: torch.device) -> Tensor | None:
        """Numbers of the tokens that are neither text nor sinks; None for all."""
        ranges = self.sinks(context)
        if not ranges:
            return None
        others = marked_tokens(ranges, context.length)
        require(not bool(others.all()), "every token is text or a sink; give fewer sinks")
        return (~others).nonzero()[:, 0].to(device)

    def _cluster(
        self, q: Tensor, k: Tensor, counts: list[int], chosen: Tensor | None, state: State
    ) -> tuple[_Side, _Side]:
        config, length = self.config, q.shape[2]
        known = state.get("centroids", (None, None))
        iterations = config.first_iterations if known[0] is None else config.iterations
        sides, centroids = [], []
        for x, count, warm in zip((q, k), counts, known, strict=True):
            # k-means draws from a generator of its own: the pipeline's noise is left alone
            own = x if chosen is None else x.index_select(2, chosen)
            found = kmeans(own, count, iterations, centroids=warm)
            labels, others = found.labels, 0
            if chosen is not None:
                every = labels.new_full(x.shape[:3], count)
                labels, others = every.index_copy_(2, chosen, labels), length - len(chosen)
            order, offsets = order_by_label(labels, count + (others > 0))
            sides.append(_Side(labels, order, offsets, count, others))
            centroids.append(found.centroids)
        state["centroids"] = tuple(centroids)
        return sides[0], sides[1]


def _count(tokens: int, per_cluster: int, least: int, smallest: int) -> int:
    """Clusters by default; never so many that they hold less than `smallest` tokens on average."""
    return max(1, min(max(least, round(tokens / per_cluster)), tokens // smallest))


def cluster_mass(q_means: Tensor, k_means: Tensor, k_sizes: Tensor, scale: float) -> Tensor:
    """Return the softmax over key centroids, each weighted by its number of keys.

    Args:
        q_means: `(B, H, Cq, D)`.
        k_means: `(B, Hkv, Ck, D)`.
        k_sizes: `(B, Hkv, Ck)`; empty clusters get no mass.
        scale: of the softmax.

    Returns:
        `(B, H, Cq, Ck)`, rows that add up to 1.
    """
    group = q_means.shape[1] // k_means.shape[1]
    k_means, k_sizes = (x.repeat_interleave(group, 1) for x in (k_means, k_sizes))
    scores = q_means.float() @ k_means.float().transpose(-1, -2) * scale
    return (scores + k_sizes.float().log()[..., None, :]).softmax(-1)


def kept_clusters(weights: Tensor, top_p: float, min_share: float) -> Tensor:
    """Return the key clusters that each query cluster keeps.

    They are taken from the heaviest down until `top_p` of the sum is reached, the one that crosses
    it included.

    Args:
        weights: `(B, H, Cq, Ck)`, 0 or more.
        top_p: share to keep.
        min_share: least share of clusters to keep, rounded down.

    Returns:
        bool `(B, H, Cq, Ck)`.
    """
    return smallest_set(weights, top_p, math.floor(min_share * weights.shape[-1]))
