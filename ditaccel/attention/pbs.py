"""PBS: keys are sorted by what they weigh, so that some tiles weigh much and most weigh little.

Attention does not depend on the order of its keys. In each head they are sorted by their mean
softmax weight under some queries, and tiles of sorted keys are chosen by their pooled scores until
a share of a row is reached. Paper: arXiv 2510.21270, for the causal prefill of language models,
which sorts within segments under the last queries of the prompt.

Ours, in its manner (there is nothing causal in a diffusion transformer): one segment is the whole
sequence by default, the queries that weigh the keys are spread over it, and queries are sorted too,
by the key tile that they score highest, so that those of a tile agree. Text and sinks stay apart,
at the end. Neither the segment of the queries nor the first tile is kept by rule; name tokens in
`sink_tokens` where they matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config import Example, method, require
from ..kernels import TileMap, permute
from .engine.options import FixedTileOptions, Swept
from .engine.order import OrderPerHead
from .engine.planner import LayerContext, Plan, State
from .engine.scores import grouped_product, mean_keys, smallest_set, tile_scores
from .engine.tile_planner import TilePlanner, marked_tokens


@method("pbs", paper="2510.21270")
@dataclass(frozen=True, kw_only=True)
class PBSConfig(FixedTileOptions):
    """Keys in the order of what they weigh, in each head, and the tiles that hold most of it.

    Options that all methods share are described in `TileOptions`.

    Args:
        threshold: share of a row's pooled softmax that is kept, in (0, 1]. Published: 0.9.
        segment: tokens within which keys are sorted, a multiple of k_tile; None for the whole
            sequence. Published: 256.
        probes: queries that weigh the keys, spread over the sequence. Published: the last 128.
        sort_queries: whether queries are sorted by the key tile that they score highest (ours).
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    swept: ClassVar[Swept] = Swept("threshold", (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9))

    threshold: float = 0.9
    segment: int | None = None
    probes: int = 128
    sort_queries: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0.0 < self.threshold <= 1.0, f"threshold is {self.threshold}; give a share in (0, 1]"
        )
        require(self.probes >= 1, f"probes is {self.probes}; it must be 1 or more")
        require(
            self.segment is None or (self.segment > 0 and self.segment % (self.k_tile or 1) == 0),
            f"segment is {self.segment}; give a multiple of k_tile={self.k_tile}, or leave it out",
        )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        small = cls(q_tile=16, k_tile=16, min_tokens=0, dense_steps=0, break_even=1.0)
        return (Example(replace(small, threshold=1.0), replace(small, threshold=0.3)),)

    def planner(self) -> PBSPlanner:
        """What the seam carries out."""
        return PBSPlanner(self)


class PBSPlanner(TilePlanner):
    """Sorts again at each call; keeps nothing."""

    planning = 0.12

    def sparse(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan:
        """See `TilePlanner`."""
        config, tilings = self.config, self.tilings(q, k, context)
        apart = marked_tokens(self.sinks(context), context.length).to(q.device)
        counts = (~apart).expand(len(q), -1)
        if context.key_mask is not None:
            counts = counts & context.key_mask
        k_order = sorted_keys(
            key_importance(q, k, scale, config.probes, counts), counts, apart, config.segment
        )
        keys = permute(k, k_order)
        # (what is apart is kept anyway, and takes no part in the choice)
        own = counts[:, None].expand(k_order.shape).gather(-1, k_order.long())
        q_order = torch.arange(q.shape[2], device=q.device).expand(q.shape[:3])
        if config.sort_queries:
            means, share = mean_keys(keys, tilings[1], own)
            q_order = sorted_queries(q, means, share, apart)
        q_order = q_order.int().contiguous()
        scores = tile_scores(permute(q, q_order), keys, tilings, scale, own)
        kept = smallest_set(scores.softmax(-1).nan_to_num(nan=0.0), self.density_setting(context))
        orders = q_order, k_order.repeat_interleave(q.shape[1] // k.shape[1], 1)
        kept = self.with_sinks(kept, context, tilings, orders)
        order = OrderPerHead(q_order, k_order)
        return Plan(TileMap.from_mask(kept, *tilings), "sorted keys", order=order, rest=self.rest)


def key_importance(q: Tensor, k: Tensor, scale: float, probes: int, counts: Tensor) -> Tensor:
    """Mean softmax weight of each key under some queries, `(B, Hkv, L)`; 0 for what does not count.

    Args:
        q: `(B, H, L, D)`.
        k: `(B, Hkv, L, D)`.
        scale: of the softmax.
        probes: queries, spread evenly over the sequence.
        counts: bool `(B, L)`.
    """
    length = q.shape[2]
    chosen = torch.linspace(0, length - 1, min(probes, length), device=q.device).round().long()
    scores = grouped_product(q.index_select(2, chosen), k).float() * scale
    weights = scores.masked_fill(~counts[:, None, None], -torch.inf).softmax(-1).nan_to_num(nan=0.0)
    return weights.mean(2).unflatten(1, (k.shape[1], -1)).mean(2)


def sorted_keys(weights: Tensor, counts: Tensor, apart: Tensor, segment: int | None) -> Tensor:
    """An order of the keys, the heaviest of each segment first, int32 `(B, Hkv, L)`.

    Args:
        weights: of the keys, `(B, Hkv, L)`.
        counts: bool `(B, L)`; keys that do not count come last in their segment.
        apart: bool `(L,)`, text and sinks, which come behind all segments.
        segment: tokens of a segment; None for one of all.
    """
    length = weights.shape[-1]
    weights = weights.masked_fill(~counts[:, None], -1.0)
    by_weight = weights.argsort(dim=-1, descending=True, stable=True)
    number = (~apart).long().cumsum(0) - 1
    number = torch.zeros_like(number) if segment is None else number // segment
    number = number.masked_fill(apart, length)
    by_segment = number[by_weight].argsort(dim=-1, stable=True)
    return by_weight.gather(-1, by_segment).int()


def sorted_queries(q: Tensor, means: Tensor, share: Tensor | None, apart: Tensor) -> Tensor:
    """An order of the queries by the key tile that they score highest, `(B, H, L)`.

    Args:
        q: `(B, H, L, D)`.
        means: mean key of each tile, `(B, Hkv, T, D)`.
        share: of the keys of each tile that count, `(B, Hkv, T)`.
        apart: bool `(L,)`, text and sinks, which come last.
    """
    scores = grouped_product(q.float(), means)
    if share is not None:
        empty = (share == 0).repeat_interleave(q.shape[1] // share.shape[1], 1)
        scores = scores.masked_fill(empty[:, :, None], -torch.inf)
    return scores.argmax(-1).masked_fill(apart, means.shape[2]).argsort(dim=-1, stable=True)
