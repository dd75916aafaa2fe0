"""An attention map: tiles near the diagonal."""

from dataclasses import dataclass, replace

import torch
from ditaccel.kernels import TileMap, Tiling, keep_keys, keep_queries

from ditaccel.attention.planner import Plan, Planner
from ditaccel.config import AttentionConfig, Example, method


@method("diagonal")
@dataclass(frozen=True, kw_only=True)
class DiagonalConfig(AttentionConfig):
    """Each query tile attends to the key tiles nearest to it.

    Args:
        reach: tiles on either side of the diagonal that are kept.
        tile: tokens per tile.
        min_tokens: shorter sequences stay dense.
        break_even: kept share of the attention matrix above which a layer is dense.
    """

    reach: int = 8
    tile: int = 64
    min_tokens: int = 1024
    break_even: float | None = None

    @classmethod
    def examples(cls):
        small = cls(tile=16, min_tokens=0, break_even=1.0)
        return (Example(replace(small, reach=1000), replace(small, reach=1)),)

    def planner(self):
        return DiagonalPlanner(self)


class DiagonalPlanner(Planner):
    """Makes the same map in every layer and step."""

    def __init__(self, config):
        self.config = config
        self.least_tokens, self.least_steps = config.min_tokens, 1
        self.break_even, self.backend = config.break_even, None

    def plan(self, q, k, v, scale, context, state):
        tiling = Tiling.fixed(q.shape[2], self.config.tile)
        place = torch.arange(tiling.tiles, device=q.device)
        mask = ((place[:, None] - place).abs() <= self.config.reach)[None, None]
        if context.text is not None:
            mask = keep_queries(keep_keys(mask, [context.text], tiling), [context.text], tiling)
        mask = mask.expand(*q.shape[:2], -1, -1)
        return Plan(TileMap.from_mask(mask, tiling, tiling), "diagonal")

    def update(self, plan, result, state):
        pass
