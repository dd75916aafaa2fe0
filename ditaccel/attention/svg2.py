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

from ..config import AttentionConfig, Example, method, require
from ..kernels import TileAttentionOutput, TileCentroids, TileMap, Tiling, kmeans, order_by_label
from ..kernels.segments import segment_sums
from .options import Backend, check_dense, in_dense_layers, in_dense_part
from .planner import Dense, LayerContext, Plan, State

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
@dataclass(frozen=True)
class SVG2Config(AttentionConfig):
    """Semantic clusters as tiles.

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
        refresh: steps that one clustering serves; the map is made anew at every step. Published: 1.
        max_age: steps that centroids may be old (a cache forecasts some steps); then k-means
            starts afresh.
        cluster_when_dense: run k-means in the first, dense steps too, so that the first sparse step
            starts from warm centroids, as published for HunyuanVideo and for image-to-video at
            480p.
        compensate: let the mean key and value of every skipped cluster stand for it, weighed by its
            size and the spread of its keys, and keep clusters by the error that this leaves (ours).
            False keeps them by their mass and puts nothing in place of the others, as published.
        dense_steps: first steps that stay dense: a number, or a share of the steps below 1.
        dense_layers: first layers that stay dense, likewise.
        min_tokens: shorter sequences stay dense.
        break_even: kept share of the attention matrix above which a layer is dense for some steps;
            None for 0.7 on a CPU and 0.97 elsewhere, 1 for never.
        backend: of the kernel: `auto`, `triton`, `torch` or `naive`.
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
    dense_steps: int | float = 0.2
    dense_layers: int | float = 0.03
    min_tokens: int = 1024
    break_even: float | None = None
    backend: Backend = "auto"

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
        self.backend: str | None = None if config.backend == "auto" else config.backend

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan | Dense:
        """See `Planner`."""
        config = self.config
        dense = in_dense_part(config, context)
        if dense is None:
            return self._sparse(q, k, v, scale, context, state)
        if config.cluster_when_dense and not in_dense_layers(config, context):
            self._clustered(q, k, context, state)
        return dense

    def _clustered(self, q: Tensor, k: Tensor, context: LayerContext, state: State) -> bool:
        """Bring the clustering of a layer up to date; returns whether the last one serves on."""
        config, index = self.config, context.step.index
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
        return reuse

    def _sparse(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan:
        config, length = self.config, context.length
        reuse = self._clustered(q, k, context, state)
        q_side, k_side = state["sides"]
        q_means, k_means = q_side.means(q), k_side.means(k)
        video = (slice(None), slice(None), slice(q_side.clusters), slice(k_side.clusters))
        weights = cluster_mass(
            q_means[:, :, : q_side.clusters],
            k_means[:, :, : k_side.clusters],
            k_side.sizes[..., : k_side.clusters],
            scale,
        )
        centroids = None
        if config.compensate:
            centroids, loss = _compensation(q_means, k, k_means, v, k_side, scale)
            weights = weights * loss[video]
        kept = kept_clusters(weights, config.top_p, config.min_share)
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
            centroids=centroids,
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


def cluster_mass(q_means: Tensor, k_means: Tensor, k_sizes: Tensor, scale: float) -> Tensor:
    """Return the softmax over key centroids, each weighed by its number of keys.

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
    ordered, order = weights.sort(dim=-1, descending=True)
    sums = ordered.cumsum(-1)
    before = sums - ordered
    rank = torch.arange(ordered.shape[-1], device=ordered.device)
    least = max(1, math.floor(min_share * ordered.shape[-1]))
    # Rounding brings the sum to its end before the last cluster that has any weight.
    keep = (before < top_p * sums[..., -1:]) | (rank < least) | (top_p >= 1.0)
    return torch.zeros_like(keep).scatter_(-1, order, keep)


def _compensation(
    q_means: Tensor, k: Tensor, k_means: Tensor, v: Tensor, k_side: _Side, scale: float
) -> tuple[TileCentroids, Tensor]:
    """What stands for skipped clusters, and how much of their mass it gets wrong.

    With the keys of a cluster at mean + d and its values at mean + e, the cluster's term in the
    numerator is n exp(s q.mean) E[exp(s q.d) (mean + e)]. To second order E[exp(s q.d)] is 1 + u/2
    with u = s^2 q'Cq, C the covariance of the keys: its logarithm is the bias. What is left is at
    most sqrt(u) times the spread of the values (Cauchy-Schwarz), and a part of u / 2 itself, as C's
    diagonal stands for C and the mean of a query cluster for its queries: their sum is the loss.

    Returns:
        Centroids, and the loss per mass, float32 `(B, H, Cq [+ 1], Ck [+ 1])`.
    """
    group = q_means.shape[1] // k_means.shape[1]
    v_means = k_side.means(v)
    variance = (k_side.means(k.float().square()) - k_means.square()).clamp(min=0)
    v_squares = k_side.means(v.float().square().sum(-1, keepdim=True))[..., 0]
    v_norms = v_means.norm(dim=-1)
    spread = (v_squares - v_norms.square()).clamp(min=0).sqrt()
    variance, spread, v_norms = (x.repeat_interleave(group, 1) for x in (variance, spread, v_norms))
    u = scale**2 * (q_means.square() @ variance.transpose(-1, -2))
    loss = u.sqrt() * spread[..., None, :] + u / 2 * v_norms[..., None, :]
    return TileCentroids(k_means, v_means, (u / 2).log1p()), loss
