"""Ranks that compute one transformer together: their decisions must be one.

Under context parallelism each rank has a part of the tokens. A gate that compared its own part
would let one rank compute and wait for ever for another that forecasts. So what a gate compares is
added up over all ranks first, and is then the figure that one rank with all tokens would see.
Inside attention each rank has all tokens of some heads (`exchange.py`), and what is decided for a
layer as a whole is decided from all of its heads (`HeadShare`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_T = TypeVar("_T")


@dataclass(frozen=True)
class Ranks:
    """The ranks of one process group.

    Attributes:
        group: the process group.
        ring: how many of them pass keys and values around (ring attention); 1 where none does.
    """

    group: Any
    ring: int = 1

    @property
    def count(self) -> int:
        """How many there are."""
        return dist.get_world_size(self.group)

    @property
    def here(self) -> int:
        """The number of this one."""
        return dist.get_rank(self.group)

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
        return tokens.tensor_split(self.count, dim=1)[self.here]

    def gathered(self, x: Tensor, sizes: Sequence[int], dim: int) -> list[Tensor]:
        """The parts of all ranks, in their order.

        Args:
            x: this rank's part.
            sizes: of the parts of all ranks, along `dim`.
            dim: along which they differ in size.
        """
        own = x.movedim(dim, 0)
        most = max(sizes)
        padded = torch.cat([own, own.new_zeros((most - len(own), *own.shape[1:]))]).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.group)
        return [part[:size].movedim(0, dim) for part, size in zip(parts, sizes, strict=True)]

    def sizes(self, own: int, device: torch.device) -> list[int]:
        """A number of each rank; waits for the device."""
        number = torch.tensor([own], device=device)
        return [int(part) for part in self.gathered(number, [1] * self.count, 0)]


@dataclass(frozen=True)
class HeadShare:
    """Which heads of an attention layer are computed here.

    Attributes:
        ranks: that have the others; None where all heads are here.
        counts: heads of each rank, in the order of the ranks.
    """

    ranks: Ranks | None = None
    counts: tuple[int, ...] = ()

    @property
    def writes(self) -> bool:
        """Whether files that are the same for all ranks are written here."""
        return self.ranks is None or self.ranks.here == 0

    def total(self, heads: int) -> int:
        """Heads of the layer, of which so many are here."""
        return heads if self.ranks is None else sum(self.counts)

    def numbers(self, heads: int) -> range:
        """Numbers in the layer of the heads that are here."""
        first = 0 if self.ranks is None else sum(self.counts[: self.ranks.here])
        return range(first, first + heads)

    def own(self, every: Sequence[_T], heads: int) -> Sequence[_T]:
        """Of what there is for each head of the layer, that for the heads here."""
        numbers = self.numbers(heads)
        return every[numbers.start : numbers.stop]

    def every(self, x: Tensor, dim: int) -> Tensor:
        """What each rank has for its heads, for all heads of the layer, the same on each rank.

        Every rank must ask for it at the same place of the same call.
        """
        if self.ranks is None:
            return x
        return torch.cat(self.ranks.gathered(x, self.counts, dim), dim)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a value over all heads, from each rank's mean over its own; see `every`."""
        if self.ranks is None:
            return value
        total = self.ranks.total(value.double() * self.counts[self.ranks.here])
        return (total / sum(self.counts)).to(value.dtype)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a value over the ranks; see `every`."""
        return value if self.ranks is None else self.ranks.total(value)


ALL_HEADS = HeadShare()
