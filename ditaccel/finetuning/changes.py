"""What is added to a weight of the model while it learns: any change, or one of low rank."""

from __future__ import annotations

import torch
from torch import Tensor

_SEED = 0


class Change:
    """Any change of one weight, 0 at first.

    Args:
        base: the weight's own values.

    Attributes:
        tensors: what is trained, float32.
    """

    def __init__(self, base: Tensor) -> None:
        self.tensors = [torch.zeros_like(base, dtype=torch.float32)]

    @property
    def value(self) -> Tensor:
        """The change, shaped like the weight."""
        return self.tensors[0]

    def take(self, gradient: Tensor | None) -> None:
        """Hand the gradient of the weight over to what is trained."""
        self.tensors[0].grad = None if gradient is None else gradient.float()


class LowRank(Change):
    """A change `up @ down` of a matrix `(O, I)`: `up` is 0 at first, `down` random (LoRA).

    Args:
        base: the weight's own values.
        rank: columns of `up` and rows of `down`.
    """

    def __init__(self, base: Tensor, rank: int) -> None:
        rows, columns = base.shape
        generator = torch.Generator().manual_seed(_SEED)
        down = torch.randn(rank, columns, generator=generator) * columns**-0.5
        self.tensors = [
            torch.zeros(rows, rank, device=base.device),
            down.to(base.device),
        ]

    @property
    def value(self) -> Tensor:
        """See `Change`."""
        up, down = self.tensors
        return up @ down

    def take(self, gradient: Tensor | None) -> None:
        """See `Change`: d up = G down^T, d down = up^T G."""
        up, down = self.tensors
        up.grad = None if gradient is None else gradient.float() @ down.T
        down.grad = None if gradient is None else up.T @ gradient.float()


def change_of(base: Tensor, rank: int | None) -> Change:
    """What is trained of a weight: of low rank where that is smaller than all of it."""
    if rank is None or base.ndim != 2 or rank * sum(base.shape) >= base.numel():
        return Change(base)
    return LowRank(base, rank)
