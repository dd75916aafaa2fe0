"""The linear branch of SLA and its trained projection, with a backward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...kernels import (
    Precision,
    TileAttentionOutput,
    TileMap,
    feature_map,
    sparse_linear_attention,
    tile_attention,
)
from ..engine.planner import Plan


class LinearBranch:
    """`Proj(linear attention)`, added to the tiles of a plan; see `planner.Branch`.

    Args:
        options: of the planner: `feature_map`, `linear`.
        weight: `(H, D, D)`, or `(1, D, D)` where all heads share it.
        bias: `(H, D)` or `(1, D)`.
        heads: numbers of the heads of the plan; None for all.
    """

    def __init__(
        self, options: Mapping[str, Any], weight: Tensor, bias: Tensor, heads: list[int] | None
    ) -> None:
        self._options, self._weight, self._bias, self._heads = options, weight, bias, heads

    def run(
        self,
        plan: Plan,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        key_mask: Tensor | None,
        backend: str | None,
        precision: Precision,
    ) -> tuple[TileAttentionOutput, Tensor]:
        """The critical tiles, and linear attention over the marginal ones or over all."""
        assert plan.stands_for is not None
        summed = plan.stands_for
        if self._options["linear"] == "all":
            summed = torch.ones_like(summed)
        q_features, k_features = feature_map(self._options["feature_map"])(q, k)
        critical, exact = plan.tile_map, None
        if precision != "model":
            exact = tile_attention(
                q, k, v, critical, scale=scale, mask=key_mask, return_lse=True,
                precision=precision, backend=backend,
            )  # fmt: skip
            none = torch.zeros_like(critical.to_mask())
            critical = TileMap.from_mask(none, critical.q_tiling, critical.k_tiling)
        result = sparse_linear_attention(
            q, k, v, critical, summed,
            q_features=q_features, k_features=k_features, scale=scale, mask=key_mask,
            backend=backend,
        )  # fmt: skip
        return exact or TileAttentionOutput(result.sparse, result.lse, None), result.linear

    def add(self, out: Tensor, extra: Tensor) -> Tensor:
        """Add linear attention through the projection."""
        weight, bias = self._weight, self._bias
        if self._heads is not None and len(weight) > 1:
            weight, bias = weight[self._heads], bias[self._heads]
        projected = extra.to(weight.dtype) @ weight.mT + bias[:, None]
        return (out + projected).to(extra.dtype)
