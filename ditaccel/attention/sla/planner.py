"""SLA: softmax over critical tiles, something cheaper over marginal ones, nothing for the rest.

Each query tile sorts the key tiles by a map of pooled queries and keys: the first few are critical
and are computed exactly, the last few are negligible and are skipped, and those between are
marginal. Published (arXiv 2509.24006): marginal tiles go through linear attention, whose output is
added through a projection that is trained, `sparse + Proj(linear)`; at 0, where it starts, nothing
is left of it.

Training-free mode is ours: marginal tiles are under one softmax with the critical ones, each
through its moments. The derivation is in `kernels/moments`. In short, a tile of n keys adds to a
query's softmax n exp(s q.mean_k) E[exp(s q.d) (mean_v + e, 1)], `d` and `e` being what its keys and
values are away from their means; to second order in `d` that is one key of the logit
s q.mean_k + log n + log(1 + u/2) with the value mean_v + s Cov(v, k) q / (1 + u/2), where u is the
variance of its scores. The covariances of a query tile's marginal tiles add up to one matrix that
its queries are multiplied with, as the state of linear attention, but nothing has to be trained:
the logits say how much each tile counts alongside the critical ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...config import require
from ...kernels import TileMap, Tiling, pool_tiles, tile_moments
from ..engine.attend import attend
from ..engine.options import FixedTileOptions
from ..engine.order import SharedOrder
from ..engine.planner import LayerContext, Plan, State, TileStats
from ..engine.tile_planner import TilePlanner
from .defaults import DEFAULTS, PUBLISHED, SHARED, check_sum
from .linear import LinearBranch
from .map import moment_errors, pooled_scores, tile_classes
from .weights import SLAWeights

Cubes = tuple[Tensor, Tensor]  # an order of the tokens, and its inverse
# Queries and keys of a tile, from this many tokens on. Short sequences would have too few tiles to
# choose a few percent of them, and they vary too much within one for its moments to stand for it.
TILES = ((0, (32, 32)), (8192, (128, 64)))
# A tile of keys should be a neighbourhood: long in time, or a square of a picture.
CUBE, SQUARE = (16, 2, 2), (1, 8, 8)
_SERVES = 5  # steps that the first choice of orders serves; each later one serves twice as long
# One query tile in so many is looked at for it, in tiles of about so many queries of a long
# sequence: each costs its row of dense attention, in either order.
_SAMPLE, _SAMPLED = 8, 512


class SLAPlanner(TilePlanner):
    """Makes the map again from each call's queries and keys; keeps only which order serves a head.

    Args:
        config: the options.
        weights: trained projections, or None.

    Attributes:
        options: all of `DEFAULTS` and the mode, as they hold: given, those of the weights, or
            default.
    """

    planning = 0.1
    least_steps = 1

    def __init__(self, config: FixedTileOptions, weights: SLAWeights | None) -> None:
        super().__init__(config)
        self.weights: SLAWeights | None = weights
        self.options: dict[str, Any] = {}
        trained = dict(weights.options) if weights is not None else {}
        # trained as `combined`, changes of the model's weights serve without the branch too
        if self.config.mode == "training_free" and trained.get("mode") == "combined":
            trained["mode"] = "training_free"
            require(
                weights is not None and any(weights.changes.values()),
                f"{self.config.weights} holds projections alone, which mode='training_free' leaves "
                "out; leave mode out",
            )
        for name in SHARED:
            given = getattr(config, name)
            given = list(given) if isinstance(given, tuple) else given
            require(
                given is None or name not in trained or given == trained[name],
                f"{name}={given!r}, but {self.config.weights} was trained with {name}="
                f"{trained.get(name)!r}; leave {name} out, or train for it",
            )
            default = DEFAULTS.get(name, "training_free")
            if self.options.get("mode") in ("sla", "sparse"):
                default = PUBLISHED.get(name, default)
            self.options[name] = trained.get(name, default if given is None else given)
        check_sum(self.options["critical"], self.options["negligible"])
        self.mode: str = self.options["mode"]
        moments = self.mode in ("training_free", "combined")
        self.rest = config.rest or ("moments" if moments else "nothing")
        require(
            weights is None or config.rest in (None, "moments" if moments else "nothing"),
            f"rest={config.rest!r}, but weights of the mode {self.mode!r} are trained with another "
            "rest; leave rest out",
        )
        self.choose_by = self.config.choose_by or ("mass" if self.rest == "nothing" else "error")

    def sparse(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan:
        """See `TilePlanner`."""
        with torch.no_grad():
            parts = []
            for heads, cubes in self._orders(q, k, v, scale, context, state):
                own = None if len(heads) == q.shape[1] else heads
                order = None
                if own is not None or cubes is not None:
                    tokens, inverse = cubes or (None, None)
                    order = SharedOrder(tokens, inverse, own, q.shape[1] // k.shape[1])
                plan = self._map(q, k, v, scale, context, order)
                branch = self._branch(context, own, q.shape[1], q.device)
                parts.append((heads, replace(plan, branch=branch)))
            return Plan.of_heads(parts)

    def _map(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        context: LayerContext,
        order: SharedOrder | None,
        sampled: bool = False,
    ) -> Plan:
        """The plan of the heads of an order, without a branch.

        Args:
            q: `(B, H, L, D)`; where `sampled`, only some queries, and of the heads in their order.
            k: `(B, Hkv, L, D)`.
            v: like k.
            scale: of the softmax.
            context: where the call is.
            order: of the tokens; None for that of the model.
            sampled: whether q holds whole tiles of some queries.
        """
        mask = context.key_mask
        if order is not None:
            q = q if sampled else order.queries(q)
            k, v, mask = order.keys(k), order.keys(v), order.key_mask(mask)
        q_tiling, k_tiling = tilings = self.tilings(q, k, context)
        stats = TileStats(pool_tiles(q, q_tiling), tile_moments(k, v, k_tiling, mask))
        if self.choose_by == "mass":
            mass = rank = pooled_scores(*stats, scale)
        else:
            mass, rank = moment_errors(*stats, scale)
        share = self.density_setting(context)
        critical, marginal = tile_classes(mass, share, self.options["negligible"], rank)
        tokens = None if order is None else order.tokens
        critical = self.with_sinks(
            critical, context, tilings, (tokens, tokens), queries=not sampled
        )
        return Plan(
            TileMap.from_mask(critical, *tilings),
            self.mode.replace("_", "-"),
            order=order,
            rest=self.rest,
            stands_for=marginal & ~critical,
            stats=stats,
        )

    def density_setting(self, context: LayerContext) -> float:
        """See `TilePlanner`: the share of critical tiles, which weights may be trained for."""
        if self.config.schedule:
            return super().density_setting(context)
        return float(self.options["critical"])

    def tilings(self, q: Tensor, k: Tensor, context: LayerContext) -> tuple[Tiling, Tiling]:
        """See `TilePlanner`."""
        q_tile, k_tile = self.tiles(context.length)
        return Tiling.fixed(q.shape[2], q_tile), Tiling.fixed(k.shape[2], k_tile)

    def tiles(self, length: int) -> tuple[int, int]:
        """Queries and keys of a tile in a sequence of so many tokens."""
        chosen = next(tiles for least, tiles in reversed(TILES) if length >= least)
        return self.options["q_tile"] or chosen[0], self.options["k_tile"] or chosen[1]

    def _branch(
        self, context: LayerContext, heads: list[int] | None, count: int, device: torch.device
    ) -> LinearBranch | None:
        """The trained branch of a layer; None where nothing was trained.

        Args:
            context: where the call is.
            heads: that the branch is for; None for all of the call.
            count: heads of the call.
            device: of the weights.
        """
        if self.weights is None or self.mode == "training_free":
            return None
        found = self.weights.projection(context.component, context.layer, device)
        if context.share.ranks is not None:  # the projection is that of all heads
            numbers = context.share.numbers(count)
            heads = [numbers[h] for h in (range(count) if heads is None else heads)]
        return None if found is None else LinearBranch(self.options, *found, heads)

    def _orders(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> list[tuple[list[int], Cubes | None]]:
        """Heads, and the order in which their tokens are put: that of the model, or of cubes.

        Some heads look along time and some around a place. Which order serves a head is measured:
        on one query tile in eight or fewer, against dense attention. It is a property of the head
        more than of the step, so each choice serves twice as long as the one before.
        """
        every = list(range(q.shape[1]))
        cubes = self._cubes(context, q.device)
        if cubes is None:
            return [(every, None)]
        if context.step.index >= state.get("serves_until", 0):
            candidates = (None, cubes)
            errors = torch.stack(
                [self._sampled(q, k, v, scale, context, order) for order in candidates]
            )
            state["cubed"] = (errors[1] < errors[0]).tolist()
            state["served"] = 2 * state.get("served", _SERVES / 2)
            state["serves_until"] = context.step.index + state["served"]
        cubed = [h for h in every if state["cubed"][h]]
        plain = [h for h in every if not state["cubed"][h]]
        return [(h, order) for h, order in ((plain, None), (cubed, cubes)) if h]

    def _cubes(self, context: LayerContext, device: torch.device) -> Cubes | None:
        cube = self.options["cube"]
        if context.grid is None or cube == []:
            return None
        cube = (CUBE if context.grid[0] > 1 else SQUARE) if cube is None else tuple(cube)
        return self.in_cubes(context, cube, device)

    def _sampled(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        context: LayerContext,
        cubes: Cubes | None,
    ) -> Tensor:
        """Relative error of each head in an order, `(H,)`; heads that share keys get one value."""
        tile, length = self.tiles(context.length)[0], q.shape[2]
        tiles = -(-length // tile)
        every_nth = max(_SAMPLE, tiles * tile // _SAMPLED)
        rows = torch.arange(length, device=q.device)
        rows = rows[rows // tile % every_nth == every_nth // 2 % tiles]
        order = None if cubes is None else SharedOrder(*cubes)
        queries = SharedOrder(rows if cubes is None else cubes[0][rows], None).queries(q)
        plan = self._map(queries, k, v, scale, context, order, sampled=True)
        keys, values, mask = k, v, context.key_mask
        if order is not None:
            keys, values, mask = order.keys(k), order.keys(v), order.key_mask(mask)
        plan = replace(plan, order=None)
        out = attend(plan, queries, keys, values, scale, mask, self.backend).output
        shared = q.shape[1] != k.shape[1]
        mask = None if context.key_mask is None else context.key_mask[:, None, None]
        dense = torch.nn.functional.scaled_dot_product_attention(
            queries, k, v, mask, scale=scale, enable_gqa=shared
        )
        off = (out - dense).float().square().sum((0, 2, 3)) / dense.float().square().sum((0, 2, 3))
        groups = off.unflatten(0, (k.shape[1], -1)).mean(1, keepdim=True)
        return groups.expand(-1, q.shape[1] // k.shape[1]).flatten()
