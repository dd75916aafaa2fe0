"""SLA: softmax over critical tiles, something cheaper over marginal ones, nothing for the rest.

Each query tile sorts the key tiles by a map of pooled queries and keys: the first few are critical
and are computed exactly, the last few are negligible and are skipped, and those between are
marginal. Published (arXiv 2509.24006): marginal tiles go through linear attention, whose output is
added through a projection that is trained, `sparse + Proj(linear)`; at 0, where it starts, nothing
is left of it.

Training-free mode is ours: marginal tiles stand under one softmax with the critical ones, each
through its moments. The derivation is in `kernels/moments`. In short, a tile of n keys adds to a
query's softmax n exp(s q.mean_k) E[exp(s q.d) (mean_v + e, 1)], `d` and `e` being what its keys and
values are away from their means; to second order in `d` that is one key of the logit
s q.mean_k + log n + log(1 + u/2) with the value mean_v + s Cov(v, k) q / (1 + u/2), where u is the
variance of its scores. The covariances of a query tile's marginal tiles add up to one matrix that
its queries are multiplied with, as the state of linear attention, but nothing has to be trained:
the logits say how much each tile counts beside the critical ones.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...config import AttentionConfig, Example, method, require
from ...core.denoising.tracker import DenoisingStep
from ...core.patching import PatchLedger
from ...kernels import TileAttentionOutput, TileMap
from ..options import Backend, check_dense, in_dense_part, share_of
from ..planner import Dense, LayerContext, Plan, State
from .cubes import cube_order
from .heads import HeadGroup, Order
from .weights import SHARED, SLAAdapter

TRAINED = ("sla", "combined")
Mode = Literal["training_free", "sla", "combined", "sparse"]
FeatureMapName = Literal["softmax", "elu", "relu", "hedgehog", "norm_aware"]
# What an option is where neither the config nor an adapter says it.
DEFAULTS: dict[str, Any] = {
    "critical": 5.0,
    "negligible": 0.0,
    "feature_map": "softmax",
    "linear": "marginal",
    "projection": "per_head",
    "cube": None,
    "q_tile": None,
    "k_tile": None,
}
# ... and in the modes `sla` and `sparse`.
PUBLISHED: dict[str, Any] = {"negligible": 10.0, "cube": []}
# Queries and keys of a tile, from this many tokens on. Short sequences would have too few tiles to
# choose a few percent of them, and they vary too much within one for its moments to stand for it.
TILES = ((0, (32, 32)), (8192, (128, 64)))
# A tile of keys should be a neighbourhood: long in time, or a square of a picture.
CUBE, SQUARE = (16, 2, 2), (1, 8, 8)
_SERVES = 5  # steps that the first choice of orders serves; each later one serves twice as long
# One query tile in so many is looked at for it, and about this many of a long sequence.
_SAMPLE, _SAMPLED = 8, 32


@method("sla", paper="2509.24006")
@dataclass(frozen=True)
class SLAConfig(AttentionConfig):
    """Sparse-linear attention.

    Options that are None take the value that the adapter in `weights` was trained with, or their
    default.

    Args:
        critical: percent of the key tiles that each query tile computes exactly, at least one tile
            (k_h of the paper); 5 by default. This is the density that `report` shows.
        negligible: percent that it skips (k_l); by default 10 in the modes `sla` and `sparse`, and
            0 in the others, where a marginal tile costs next to nothing.
        mode: `training_free`: marginal tiles under one softmax with the critical ones (ours), the
            default without weights; `sla`: the paper's rule, which needs weights and is the default
            for an adapter of that mode (`published:sla:weights=FILE` has the authors' tiles and
            dense steps too); `combined`: training-free, and the trained projection of the linear
            branch on top (ours); `sparse`: marginal tiles skipped too, to compare with.
        weights: safetensors file that `ditaccel.finetune` wrote.
        choose_by: what makes a tile critical: `mass`, the published rule, pooled queries times
            pooled keys; or `error`, what its moments would get wrong, mass times the spread of
            scores and values. None: `error` where marginal tiles go through their moments, else
            `mass`. (The published option smooth-k, keys less their mean, moves all scores of a row
            alike and changes no map.)
        feature_map: of the linear branch: `softmax` (default), `elu`, `relu`, `hedgehog` or
            `norm_aware`.
        linear: keys that the linear branch sums over: those of `marginal` tiles, as in the paper
            and its first code (default), or `all`, as in the authors' code since December 2025.
        projection: of the linear branch: one weight `per_head` (ours, default), or one that all
            heads of a layer share (`shared`), as in the authors' code.
        cube: frames, rows and columns of the neighbourhood that a tile of keys should be; tokens
            are put in that order in the heads which it serves. (16, 2, 2) by default, in the modes
            `sla` and `sparse` (), the order of the model. Families that hand packed latents over
            (Flux, LTX, Qwen-Image) keep their order.
        qk: precision of the scores; only "model", the model's own.
        dense_steps: first steps that stay dense: a number, or a share of the steps below 1.
            Published: 0, also in the mode `sla`, where it has to be said.
        dense_layers: first layers that stay dense, likewise.
        q_tile: query tokens per tile; 128 by default, 32 in sequences below 8192 tokens.
        k_tile: key tokens per tile; 64 by default, 32 in sequences below 8192 tokens.
        min_tokens: shorter sequences stay dense.
        break_even: kept share of the attention matrix above which a layer is dense for some steps;
            None for 0.7 on a CPU and 0.97 elsewhere, 1 for never.
        backend: of the kernel: `auto`, `triton`, `torch` or `naive`.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {
            "mode": "sla",
            "critical": 5.0,
            "negligible": 0.0,  # the paper's third class is in none of the authors' code
            "choose_by": "mass",
            "feature_map": "softmax",
            "linear": "marginal",
            "projection": "shared",
            "cube": (),
            "dense_steps": 0,
            "q_tile": 64,
            "k_tile": 64,
            "min_tokens": 0,
            "break_even": 1.0,
        }
    }

    critical: float | None = None
    negligible: float | None = None
    mode: Mode | None = None
    weights: str | os.PathLike[str] | None = None
    choose_by: Literal["mass", "error"] | None = None
    feature_map: FeatureMapName | None = None
    linear: Literal["marginal", "all"] | None = None
    projection: Literal["per_head", "shared"] | None = None
    cube: tuple[int, ...] | None = None
    qk: Literal["model"] = "model"
    dense_steps: int | float = 0.2
    dense_layers: int | float = 0
    q_tile: int | None = None
    k_tile: int | None = None
    min_tokens: int = 1024
    break_even: float | None = None
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        for name in ("critical", "negligible"):
            value = getattr(self, name)
            if value is None:
                continue
            require(
                0.0 <= value <= 100.0,
                f"{name} is {value:g}; it is a percentage of the key tiles, from 0 to 100",
            )
            require(
                value == 0.0 or value >= 1.0,
                f"{name} is {value:g}, and it is a percentage of the key tiles: give {name}="
                f"{100 * value:g} for that share of them",
            )
        if self.critical is not None and self.negligible is not None:
            _check_sum(self.critical, self.negligible)
        if self.cube is not None:
            require(
                len(self.cube) in (0, 3) and all(n >= 1 for n in self.cube),
                f"cube is {self.cube}; give frames, rows and columns, such as [4, 4, 4], or []",
            )
        for name in ("q_tile", "k_tile"):
            value = getattr(self, name)
            require(
                value is None or value >= 16, f"{name} is {value}; tiles have at least 16 tokens"
            )
        check_dense(self)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        tiles = cls(q_tile=16, k_tile=16, min_tokens=0, dense_steps=0, break_even=1.0)
        return (Example(replace(tiles, critical=100.0), replace(tiles, critical=20.0)),)

    def planner(self) -> SLAPlanner:
        """What the seam carries out.

        Raises:
            UsageError: the file of `weights` cannot be read.
            ConfigError: it is no adapter, or was trained with other options than those given; or
                the mode needs one and there is none.
        """
        require(
            self.weights is not None or self.mode not in TRAINED,
            f"mode={self.mode!r} needs weights=FILE of a projection that ditaccel.finetune has "
            "trained (untrained it adds nothing); or choose mode='training_free'",
        )
        if self.weights is None:
            return SLAPlanner(self, None)
        return SLAPlanner(self, SLAAdapter.load(os.fspath(self.weights)))


def _check_sum(critical: float, negligible: float) -> None:
    require(
        critical + negligible <= 100.0,
        f"critical={critical:g} and negligible={negligible:g} sum over 100; they are percentages "
        "of the same key tiles",
    )


class SLAPlanner:
    """Makes the map anew from each call's queries and keys; keeps nothing between steps.

    Args:
        config: the options.
        adapter: trained projections, or None.

    Attributes:
        options: all of `DEFAULTS` and the mode, as they hold: given, the adapter's, or default.
    """

    def __init__(self, config: SLAConfig, adapter: SLAAdapter | None) -> None:
        self.config, self.adapter = config, adapter
        self.least_tokens = config.min_tokens
        self.least_steps = 1
        self.break_even = config.break_even
        self.backend: str | None = None if config.backend == "auto" else config.backend
        self.options: dict[str, Any] = {}
        trained = adapter.options if adapter is not None else {}
        for name in SHARED:
            given = getattr(config, name)
            given = list(given) if isinstance(given, tuple) else given
            require(
                given is None or name not in trained or given == trained[name],
                f"{name}={given!r}, but {config.weights} was trained with {name}="
                f"{trained.get(name)!r}; leave {name} out, or train for it",
            )
            default = DEFAULTS.get(name, "training_free")
            if self.options.get("mode") in ("sla", "sparse"):
                default = PUBLISHED.get(name, default)
            self.options[name] = trained.get(name, default if given is None else given)
        _check_sum(self.options["critical"], self.options["negligible"])
        self.mode: str = self.options["mode"]
        moments = self.mode in ("training_free", "combined")
        self.choose_by = config.choose_by or ("error" if moments else "mass")
        self._component = ""

    def attach(self, name: str, transformer: nn.Module, ledger: PatchLedger) -> None:
        """Check the adapter against a transformer, and get its weights ready."""
        self.attached_to(name)
        if self.adapter is not None:
            self.adapter.attach(name, transformer, ledger)

    def attached_to(self, name: str) -> None:
        """Take the weights of one component of the adapter."""
        self._component = name

    def begin(self, name: str, step: DenoisingStep) -> None:
        """Put the adapter's weights in place: they are trained for the steps that are sparse.

        On a dense step they would only move the output away from the model's own.
        """
        if self.adapter is not None and step.index >= share_of(self.config.dense_steps, step.total):
            self.adapter.put(name, step.generation)

    def end(self, name: str) -> None:
        """Take them off: between calls the model is its own."""
        if self.adapter is not None:
            self.adapter.take_off(name)

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan | Dense:
        """See `Planner`."""
        dense = in_dense_part(self.config, context)
        if dense is not None:
            return dense
        with torch.no_grad():
            orders = self._orders(q, k, v, scale, context, state)
            heads = [HeadGroup(self, own, order, q, k, v, scale, context) for own, order in orders]
        critical = torch.cat([h.critical.to_mask() for h in heads], 1)
        place = torch.tensor([i for h in heads for i in h.heads], device=q.device).argsort()
        tilings = heads[0].critical.q_tiling, heads[0].critical.k_tiling

        def attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None) -> Tensor:
            parts = [h.attend(q, k, v, keys) for h in heads]
            return parts[0] if len(parts) == 1 else torch.cat(parts, 1).index_select(1, place)

        tile_map = TileMap.from_mask(critical[:, place], *tilings)
        extra = {"groups": heads, "place": place}
        return Plan(tile_map, self.mode.replace("_", "-"), attend=attend, extra=extra)

    def _orders(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> list[tuple[list[int], Order | None]]:
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

    def tiles(self, length: int) -> tuple[int, int]:
        """Queries and keys of a tile in a sequence of so many tokens."""
        chosen = next(tiles for least, tiles in reversed(TILES) if length >= least)
        return self.options["q_tile"] or chosen[0], self.options["k_tile"] or chosen[1]

    def _cubes(self, context: LayerContext, device: torch.device) -> Order | None:
        cube, grid = self.options["cube"], context.grid
        if grid is None or cube == []:
            return None
        cube = (CUBE if grid[0] > 1 else SQUARE) if cube is None else tuple(cube)
        tokens, text = math.prod(grid), context.text or (0, 0)
        if tokens != context.length - (text[1] - text[0]):
            return None  # something else stands in the sequence too
        start = text[1] if text[0] == 0 else 0
        return cube_order(grid, cube, context.length, start, device)

    def _sampled(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        context: LayerContext,
        order: Order | None,
    ) -> Tensor:
        """Relative error of each head in an order, `(H,)`; heads that share keys get one value."""
        tile, length = self.tiles(context.length)[0], q.shape[2]
        tiles = -(-length // tile)
        every_nth = max(_SAMPLE, tiles // _SAMPLED)
        rows = torch.arange(length, device=q.device)
        rows = rows[rows // tile % every_nth == every_nth // 2 % tiles]
        every = list(range(q.shape[1]))
        group = HeadGroup(self, every, order, q, k, v, scale, context, rows)
        out = group.attend(q, k, v, context.keys)
        shared = q.shape[1] != k.shape[1]
        mask = None if context.keys is None else context.keys[:, None, None]
        dense = torch.nn.functional.scaled_dot_product_attention(
            group.queries, k, v, mask, scale=scale, enable_gqa=shared
        )
        off = (out - dense).float().square().sum((0, 2, 3)) / dense.float().square().sum((0, 2, 3))
        groups = off.unflatten(0, (k.shape[1], -1)).mean(1, keepdim=True)
        return groups.expand(-1, q.shape[1] // k.shape[1]).flatten()

    def projection(self, layer: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Weight `(H, D, D)` and bias `(H, D)` of a layer, with H of 1 where heads share them.

        None where none was trained.
        """
        if self.adapter is None:
            return None
        return self.adapter.projection(self._component, layer, device)

    def update(self, plan: Plan, result: TileAttentionOutput, state: State) -> None:
        """Nothing to learn: the map is made anew from the next queries and keys."""
