"""SpargeAttn: a pooled map where tiles are alike within, and a test of the scores in the kernel.

First stage: a tile whose tokens are alike (mean cosine of all pairs above a limit) is well told by
its mean. Among those, each row keeps the fewest tiles that reach a share of the pooled softmax; a
tile whose tokens differ is always computed, a whole row of the map for queries, a whole column for
keys. Second stage: a tile that was chosen, but whose scores lie far below the running maximum, does
not enter the sum of the values. Paper: arXiv 2502.18137; keys are taken less their mean, as in the
authors' code. Ours: text is always kept, tiles without keys that count are left out.

Not here: the second stage goes by whole query tiles, as the tile kernel does, and not by the rows
of a warp, so it skips less at the same limit; nor are queries and keys in 8 bits, nor the Hilbert
curve as an order of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Example, method, require
from ..kernels import Marking, TileMap, Tiling, pool_tiles
from .engine.options import FixedTileOptions, Swept
from .engine.planner import LayerContext, Plan, State
from .engine.scores import grouped_product, largest, mean_keys, smallest_set
from .engine.tile_planner import TilePlanner

_PUBLISHED: dict[str, Any] = {
    "q_tile": 128,
    "k_tile": 64,
    "dense_steps": 0,
    "min_tokens": 128,
    "break_even": 1.0,
}


@method("sparge", paper="2502.18137")
@dataclass(frozen=True, kw_only=True)
class SpargeConfig(FixedTileOptions):
    """Tiles by a pooled map where that can be trusted, and all tiles where it cannot.

    Options that all methods share are described in `TileOptions`.

    Args:
        top_p: share of the pooled softmax that a row keeps, in (0, 1]. Published: 0.98.
        top_k: share of the key tiles that a row keeps instead; None for `top_p`. Published: 0.5,
            with a `similarity` of -0.1.
        similarity: mean cosine within a tile up to which its mean is not trusted, from -1 (always
            trusted) to 1. Published: 0.6 with `top_p`.
        pv_threshold: powers of two below the running maximum from which on a tile adds nothing to
            the values, above 0; None for no second stage. Published: 50.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {**_PUBLISHED, "top_k": 0.5, "similarity": -0.1, "pv_threshold": 50.0}
    }
    swept: ClassVar[Swept] = Swept("top_p", (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9), {"top_k": None})

    top_p: float = 0.9
    top_k: float | None = None
    similarity: float = -0.1
    pv_threshold: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0.0 < self.top_p <= 1.0, f"top_p is {self.top_p}; give a share in (0, 1]")
        require(
            self.top_k is None or 0.0 < self.top_k <= 1.0,
            f"top_k is {self.top_k}; give a share of the key tiles in (0, 1]",
        )
        require(
            -1.0 <= self.similarity <= 1.0,
            f"similarity is {self.similarity}; give a cosine from -1 to 1",
        )
        require(
            self.pv_threshold is None or self.pv_threshold > 0,
            f"pv_threshold is {self.pv_threshold}; give powers of two above 0",
        )
        require(
            not (self.schedule and self.top_k is not None),
            "schedule changes top_p, which top_k replaces; give one of them",
        )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        small = cls(
            q_tile=16, k_tile=16, similarity=-1.0, min_tokens=0, dense_steps=0, break_even=1.0
        )
        return (Example(replace(small, top_p=1.0), replace(small, top_p=0.3)),)

    def planner(self) -> SpargePlanner:
        """What the seam carries out."""
        return SpargePlanner(self)


class SpargePlanner(TilePlanner):
    """Makes the map again at each call; keeps nothing."""

    def sparse(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan:
        """See `TilePlanner`."""
        config, tilings = self.config, self.tilings(q, k, context)
        share = None if config.top_k is not None else self.density_setting(context)
        mask = trusted_tiles(
            q, k, tilings, scale, config.similarity, share, config.top_k, context.key_mask
        )
        mask = self.with_sinks(mask, context, tilings)
        marking = None
        if config.pv_threshold is not None:
            marking = Marking(-config.pv_threshold, skip_now=True)
        tile_map = TileMap.from_mask(mask, *tilings)
        return Plan(tile_map, self.config.method, marking=marking, rest=self.rest)


def trusted_tiles(
    q: Tensor,
    k: Tensor,
    tilings: tuple[Tiling, Tiling],
    scale: float,
    similarity: float,
    top_p: float | None,
    top_k: float | None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """The first stage: bool `(B, H, Tq, Tk)`.

    Args:
        q: `(B, H, L, D)`.
        k: `(B, Hkv, L, D)`.
        tilings: of the queries and of the keys.
        scale: of the softmax.
        similarity: mean cosine up to which a tile's mean is not trusted.
        top_p: share of a row's pooled softmax; None for `top_k`.
        top_k: share of the key tiles.
        key_mask: bool `(B, L)`, True for keys that take part; None for all.
    """
    keys, counted = mean_keys(k, tilings[1], key_mask)
    whole, _ = mean_keys(k, Tiling.fixed(k.shape[2], k.shape[2]), key_mask)
    alike_q = _mean_cosine(q, tilings[0], None) > similarity
    alike_k = _mean_cosine(k - whole.to(k.dtype), tilings[1], key_mask) > similarity
    group = q.shape[1] // k.shape[1]
    alike_k = alike_k.repeat_interleave(group, 1)[:, :, None]
    scores = grouped_product(pool_tiles(q, tilings[0]), keys) * scale
    empty = None if counted is None else (counted == 0)[:, :, None]
    if empty is not None:
        scores = scores.masked_fill(empty, -torch.inf)
    # tiles that are computed anyway take no part in the softmax
    shares = scores.masked_fill(~alike_k, -torch.inf).softmax(-1).nan_to_num(nan=0.0)
    if top_p is not None:
        kept = smallest_set(shares, top_p)
    else:
        assert top_k is not None
        kept = largest(shares, max(1, int(top_k * shares.shape[-1])))
    kept = kept | ~alike_k | ~alike_q[..., None]
    return kept if empty is None else kept & ~empty


def _mean_cosine(x: Tensor, tiling: Tiling, mask: Tensor | None) -> Tensor:
    """Mean cosine of all pairs of tokens of each tile `(B, H, T)`: that of the mean direction."""
    directions = F.normalize(x.float(), dim=-1)
    return mean_keys(directions, tiling, mask)[0].square().sum(-1)
