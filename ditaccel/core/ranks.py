"""Ranks that compute one transformer together: their decisions must be one.

Under context parallelism each rank has a part of the tokens. A gate that compared its own part
would let one rank compute and wait for ever for another that forecasts. So what a gate compares is
added up over all ranks first, and is then the figure that one rank with all tokens would see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """The ranks of one process group.

    Attributes:
        group: the process group.
    """

    group: Any

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks, the same on each."""
        values = values.clone()
        dist.all_reduce(values, op=dist.ReduceOp.SUM, group=self.group)
        return values

    def largest(self, value: Tensor) -> Tensor:
        """The largest value of all ranks, infinite where one is NaN; the same on each."""
        value = torch.nan_to_num(value, nan=float("inf"), posinf=float("inf"))
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.group)
        return value

    def part(self, tokens: Tensor) -> Tensor:
        """This rank's part of tokens `(B, L, C)`, as diffusers cuts them."""
        size, rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        return tokens.tensor_split(size, dim=1)[rank]
