"""An attention map: tiles near the diagonal."""

from dataclasses import dataclass, replace

import torch

from ditaccel.attention.engine.options import FixedTileOptions
from ditaccel.attention.engine.tile_planner import MaskPlanner
from ditaccel.config import Example, method


@method("diagonal")
@dataclass(frozen=True, kw_only=True)
class DiagonalConfig(FixedTileOptions):
    """Each query tile attends to the key tiles nearest to it.

    Args:
        reach: tiles on either side of the diagonal that are kept.
    """

    reach: int = 8
    dense_steps: int | float = 0

    @classmethod
    def examples(cls):
        small = cls(q_tile=16, k_tile=16, min_tokens=0, break_even=1.0)
        return (Example(replace(small, reach=1000), replace(small, reach=1)),)

    def planner(self):
        return DiagonalPlanner(self)


class DiagonalPlanner(MaskPlanner):
    """Makes one map per layer and generation."""

    serves = None

    def mask(self, q, k, v, scale, context, state):
        rows, columns = (torch.arange(t.tiles) for t in self.tilings(q, k, context))
        return (rows[:, None] - columns).abs() <= self.config.reach
