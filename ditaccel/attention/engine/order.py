"""In which order tokens are put for a map, so that a tile holds tokens that are alike."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ...kernels import inverse_permute, permute


class Order(Protocol):
    """An order of the tokens, and the way back."""

    def queries(self, q: Tensor) -> Tensor:
        """`(B, H, L, D)` in this order."""
        ...

    def keys(self, x: Tensor) -> Tensor:
        """Keys or values `(B, Hkv, L, D)` in this order."""
        ...

    def key_mask(self, mask: Tensor | None) -> Tensor | None:
        """A mask of the keys `(B, L)` in this order, as `tile_attention` takes it."""
        ...

    def back(self, out: Tensor) -> Tensor:
        """The output `(B, H, L, D)` in the order of the model."""
        ...


class SharedOrder:
    """One order for the queries and keys of all heads, or of some; autograd follows.

    Attributes:
        tokens: int64 `(L,)`, the token that comes to each place; None for the order of the model.

    Args:
        order: int64 `(L,)`, the token that comes to each place; None for the order of the model.
        inverse: int64 `(L,)`, the place of each token.
        heads: numbers of the heads, those that share keys together; None for all.
        group: query heads that share a key head.
    """

    def __init__(
        self,
        order: Tensor | None,
        inverse: Tensor | None,
        heads: list[int] | None = None,
        group: int = 1,
    ) -> None:
        self.tokens, self._inverse = order, inverse
        self._heads = heads
        self._key_heads = None if heads is None else sorted({h // group for h in heads})
        # A planner orders tokens to make a map, and the map is then carried out on the same ones.
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def queries(self, q: Tensor) -> Tensor:
        """See `Order`."""
        return self._taken(q, self._heads)

    def keys(self, x: Tensor) -> Tensor:
        """See `Order`."""
        return self._taken(x, self._key_heads)

    def key_mask(self, mask: Tensor | None) -> Tensor | None:
        """See `Order`."""
        return mask if mask is None or self.tokens is None else mask[:, self.tokens]

    def back(self, out: Tensor) -> Tensor:
        """See `Order`; heads that were left out stay so."""
        return out if self._inverse is None else _take(out, self._inverse)

    def _taken(self, x: Tensor, heads: list[int] | None) -> Tensor:
        # (what was ordered without a gradient is of no use where one is wanted)
        known = None if torch.is_grad_enabled() else self._known.get(id(x))
        if known is not None:
            return known[1]
        made = x
        if heads is not None:
            made = made.index_select(1, torch.tensor(heads, device=x.device))
        if self.tokens is not None:
            made = _take(made, self.tokens)
        if not torch.is_grad_enabled():
            self._known[id(x)] = x, made
        return made


class OrderPerHead:
    """An order of its own for each head, of queries and of keys.

    Attributes:
        q_order: int32 `(B, H, L)`, the token that comes to each place.
        k_order: int32 `(B, Hkv, L)`.
    """

    def __init__(self, q_order: Tensor, k_order: Tensor) -> None:
        self.q_order, self.k_order = q_order, k_order

    def queries(self, q: Tensor) -> Tensor:
        """See `Order`."""
        return permute(q, self.q_order)

    def keys(self, x: Tensor) -> Tensor:
        """See `Order`."""
        return permute(x, self.k_order)

    def key_mask(self, mask: Tensor | None) -> Tensor | None:
        """See `Order`; `(B, H, 1, L)`."""
        if mask is None:
            return None
        order = self.k_order.long()
        mask = mask[:, None, :].expand(order.shape).gather(-1, order)
        group = self.q_order.shape[1] // order.shape[1]
        return mask.repeat_interleave(group, 1)[:, :, None, :]

    def back(self, out: Tensor) -> Tensor:
        """See `Order`."""
        return inverse_permute(out, self.q_order)


def _take(x: Tensor, order: Tensor) -> Tensor:
    """Tokens of `(B, H, L, D)` in another order.

    Queries and keys come from a linear layer as `(B, L, H, D)`: whole tokens are then copied at
    once, several times faster on a CPU.
    """
    if x.transpose(1, 2).is_contiguous():
        return x.transpose(1, 2).index_select(1, order).transpose(1, 2)
    return x.index_select(2, order)
