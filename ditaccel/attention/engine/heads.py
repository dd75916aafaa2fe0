"""Heads that are served by plans of their own, and what is one for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels import TileAttentionOutput, TileMap, Tiling
from .order import Order


class OutputOfParts(TileAttentionOutput):
    """What a plan of several parts gives.

    Attributes:
        parts: what each part gives.
    """

    parts: Sequence[TileAttentionOutput] = ()


class OfHeads:
    """Some heads, and an order of their tokens: what a plan of these heads was made for.

    Args:
        heads: their numbers; those that share keys together.
        group: query heads that share a key head.
        order: of the tokens of these heads; None for that of the model.
        taken: what was taken already, of this very tensor.
    """

    def __init__(
        self,
        heads: list[int],
        group: int,
        order: Order | None = None,
        taken: dict[int, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self._heads, self._group, self._order = heads, group, order
        self._key_heads = sorted({head // group for head in heads})
        # A planner saw these heads to make its plan, which is then carried out on the same ones.
        self._taken = {} if taken is None else taken

    def then(self, order: Order | None) -> OfHeads:
        """These heads, and their tokens in an order."""
        return OfHeads(self._heads, self._group, order, self._taken)

    def queries(self, q: Tensor) -> Tensor:
        """See `Order`."""
        own = self._of(q, self._heads)
        return own if self._order is None else self._order.queries(own)

    def keys(self, x: Tensor) -> Tensor:
        """See `Order`."""
        own = self._of(x, self._key_heads)
        return own if self._order is None else self._order.keys(own)

    def key_mask(self, mask: Tensor | None) -> Tensor | None:
        """See `Order`."""
        return mask if self._order is None else self._order.key_mask(mask)

    def back(self, out: Tensor) -> Tensor:
        """See `Order`; other heads are left out."""
        return out if self._order is None else self._order.back(out)

    def _of(self, x: Tensor, heads: list[int]) -> Tensor:
        if len(heads) == x.shape[1]:
            return x
        known = None if torch.is_grad_enabled() else self._taken.get(id(x))
        if known is not None:
            return known[1]
        made = x.index_select(1, torch.tensor(heads, device=x.device))
        if not torch.is_grad_enabled():
            self._taken[id(x)] = x, made
        return made


def joined(parts: Sequence[tuple[int, TileMap]], place: Tensor) -> TileMap:
    """One map of several, each of some heads.

    Where their tilings differ, tiles vary in size, and the heads of a map with fewer tiles end in
    empty ones: what is computed stays the same, pair of tokens by pair.

    Args:
        parts: how many heads, and their map.
        place: int64 `(H,)`, where each head is in the parts, one after the other.
    """
    first = parts[0][1]
    batch = max(tile_map.to_mask().shape[0] for _, tile_map in parts)
    masks = [tile_map.to_mask().expand(batch, count, -1, -1) for count, tile_map in parts]
    sides = [[m.q_tiling for _, m in parts], [m.k_tiling for _, m in parts]]
    tilings = [
        side[0] if _all_fixed_alike(side) else _padded(parts, side, batch, place) for side in sides
    ]
    most = tuple(tiling.tiles for tiling in tilings)
    padded = [
        torch.nn.functional.pad(m, (0, most[1] - m.shape[3], 0, most[0] - m.shape[2]))
        for m in masks
    ]
    mask = torch.cat(padded, 1).index_select(1, place.to(first.device))
    return TileMap.from_mask(mask, *tilings)


def _all_fixed_alike(tilings: Sequence[Tiling]) -> bool:
    return tilings[0].tile is not None and len({tiling.tile for tiling in tilings}) == 1


def _padded(
    parts: Sequence[tuple[int, TileMap]], tilings: Sequence[Tiling], batch: int, place: Tensor
) -> Tiling:
    """A tiling of its own for each head, `(batch, H, T + 1)` prefix sums."""
    most = max(tiling.tiles for tiling in tilings)
    offsets = []
    for (count, tile_map), tiling in zip(parts, tilings, strict=True):
        bounds = tiling.bounds(tile_map.device)
        bounds = bounds.expand(batch, count, -1)
        more = bounds[..., -1:].expand(-1, -1, most - tiling.tiles)
        offsets.append(torch.cat([bounds, more], -1))
    every = torch.cat(offsets, 1).index_select(1, place.to(offsets[0].device))
    return Tiling.variable(every.contiguous(), tilings[0].length)
