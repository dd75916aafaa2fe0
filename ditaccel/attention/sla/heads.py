"""SLA for the heads whose tokens stand in one order: their map, and its branches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...kernels import (
    TileMap,
    TileMoments,
    Tiling,
    feature_map,
    keep_keys,
    keep_queries,
    merge_attention,
    moment_attention,
    pool_tiles,
    sparse_linear_attention,
    tile_attention,
    tile_moments,
)
from ..planner import LayerContext
from .map import moment_errors, pooled_scores, tile_classes

if TYPE_CHECKING:
    from .planner import SLAPlanner

Order = tuple[Tensor, Tensor]


def take(x: Tensor, order: Tensor) -> Tensor:
    """Tokens of `(B, H, L, D)` in another order.

    Queries and keys come from a linear layer as `(B, L, H, D)`: whole tokens are then copied at
    once, several times faster on a CPU.
    """
    if x.transpose(1, 2).is_contiguous():
        return x.transpose(1, 2).index_select(1, order).transpose(1, 2)
    return x.index_select(2, order)


class HeadGroup:
    """Heads whose tokens stand in one order: their map in one call, and what carries it out.

    Args:
        planner: whose options hold.
        heads: numbers of the heads; those that share keys come together.
        order: of the tokens, and its inverse; None for the order of the model.
        q: `(B, H, L, D)`, all heads.
        k: `(B, Hkv, L, D)`.
        v: like k.
        scale: of the softmax.
        context: where the call stands.
        rows: places in that order, in whole tiles: only these queries are computed, and no trained
            projection is added. For all queries by default.

    Attributes:
        critical: tiles that are computed.
        marginal: bool `(B, heads, Tq, Tk)`.
    """

    def __init__(
        self,
        planner: SLAPlanner,
        heads: list[int],
        order: Order | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        context: LayerContext,
        rows: Tensor | None = None,
    ) -> None:
        self.heads = heads
        self._planner, self._scale, self._order, self._rows = planner, scale, order, rows
        self._group = q.shape[1] // k.shape[1]
        self._every = len(heads) == q.shape[1]
        self._projection = planner.projection(context.layer, q.device) if rows is None else None
        self._seen = (q, k, v, context.keys)
        q, k, v = self._mine = self._own(q, k, v)
        options = planner.options
        tilings = tuple(
            Tiling.fixed(x.shape[2], tile)
            for x, tile in zip((q, k), planner.tiles(context.length), strict=True)
        )
        q_means = pool_tiles(q, tilings[0])
        moments = self._moments = tile_moments(k, v, tilings[1], self._own_keys(context.keys))
        if planner.choose_by == "mass":
            mass = rank = pooled_scores(q_means, moments, scale)
        else:
            mass, rank = moment_errors(q_means, moments, scale)
        critical, marginal = tile_classes(mass, options["critical"], options["negligible"], rank)
        if context.text is not None:
            critical = keep_keys(critical, [context.text], tilings[1])
            if rows is None:
                critical = keep_queries(critical, [context.text], tilings[0])
        self.marginal = marginal & ~critical
        self.critical = TileMap.from_mask(critical, *tilings)

    def _own(self, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        """The heads and tokens of this group."""
        orders = [None if self._order is None else self._order[0]] * 3
        if self._rows is not None:
            orders[0] = self._rows if orders[0] is None else orders[0][self._rows]
        shared = sorted({h // self._group for h in self.heads})
        tensors = []
        for x, heads, order in zip((q, k, v), (self.heads, shared, shared), orders, strict=True):
            if not self._every:
                x = x.index_select(1, torch.tensor(heads, device=x.device))
            tensors.append(x if order is None else take(x, order))
        return tensors

    def _again(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None
    ) -> tuple[list[Tensor], TileMoments | None]:
        """What the map was made of where these are the same tensors; moments know no gradient."""
        same = all(a is b for a, b in zip((q, k, v, keys), self._seen, strict=True))
        if same and not torch.is_grad_enabled():
            return self._mine, self._moments
        return self._own(q, k, v), None

    @property
    def queries(self) -> Tensor:
        """What the map was made for: queries of these heads and rows, in their order."""
        return self._mine[0]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None) -> Tensor:
        """Attention of these heads; autograd follows where a gradient is wanted.

        Args:
            q: `(B, H, L, D)`, all heads.
            k: `(B, Hkv, L, D)`.
            v: like k.
            keys: bool `(B, L)`, True for keys that take part; None for all.

        Returns:
            `(B, heads, L, D)` in the order of the model, or of `rows`.
        """
        watched = (q, k, v, *(self._projection or ()))
        wants_grad = torch.is_grad_enabled() and any(x.requires_grad for x in watched)
        if wants_grad or self._projection is not None:
            out, linear = self.branches(q, k, v, keys)
            if self._projection is not None:
                # (one that heads share is broadcast)
                weight, bias = (x if len(x) == 1 else x[self.heads] for x in self._projection)
                projected = linear.to(weight.dtype) @ weight.mT + bias[:, None]
                out = (out + projected).to(q.dtype)
        else:
            (q, k, v), moments = self._again(q, k, v, keys)
            keys = self._own_keys(keys)
            sparse = tile_attention(
                q, k, v, self.critical,
                scale=self._scale, mask=keys, return_lse=True, backend=self._planner.backend,
            )  # fmt: skip
            assert sparse.lse is not None
            out = self._back(self._merged(sparse.output, sparse.lse, q, k, v, keys, moments))
        return out

    def _own_keys(self, keys: Tensor | None) -> Tensor | None:
        return keys if keys is None or self._order is None else keys[:, self._order[0]]

    def _back(self, out: Tensor) -> Tensor:
        """In the order of the model."""
        if self._order is None or self._rows is not None:
            return out
        return take(out, self._order[1])

    def _merged(
        self,
        out: Tensor,
        lse: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        keys: Tensor | None,
        moments: TileMoments | None,
    ) -> Tensor:
        """Marginal tiles, through their moments, under the softmax of the critical ones."""
        if self._planner.mode not in ("training_free", "combined"):
            return out
        tilings = self.critical.q_tiling, self.critical.k_tiling
        part = moment_attention(
            q, k, v, self.marginal, *tilings, scale=self._scale, mask=keys, moments=moments
        )
        return merge_attention((out, lse), part)[0]

    def branches(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Output without the projection, and the linear branch, by kernels with a backward."""
        (q, k, v), moments = self._again(q, k, v, keys)
        keys = self._own_keys(keys)
        q_features, k_features = feature_map(self._planner.options["feature_map"])(q, k)
        summed = self.marginal
        if self._planner.options["linear"] == "all":
            summed = torch.ones_like(summed)
        result = sparse_linear_attention(
            q, k, v, self.critical, summed,
            q_features=q_features, k_features=k_features, scale=self._scale, mask=keys,
            backend=self._planner.backend,
        )  # fmt: skip
        out = self._merged(result.sparse, result.lse, q, k, v, keys, moments)
        return self._back(out), self._back(result.linear)
