"""Head-wise: each head is served by the map that suits it, since no map suits all heads.

Which map of which method serves a head of a layer is chosen once, from recorded queries, keys and
values: `ditaccel bench maps MODEL --choose SHARE` measures error and cost of every map per head,
and writes the choice of the least error within a share of dense attention's time as YAML. (Ours;
DiTFastAttnV2, arXiv 2503.22796, chooses between one window and dense attention per head.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import AttentionConfig, Example, method, method_spec, methods, parse_spec, require
from ..core.denoising.tracker import DenoisingStep
from ..core.patching import PatchLedger
from ..core.ranks import ALL_HEADS
from ..kernels import TileAttentionOutput, TileMap, Tiling
from .engine.heads import OfHeads, OutputOfParts
from .engine.options import TileOptions
from .engine.planner import Dense, LayerContext, Plan, Planner, State, planner_of
from .engine.tile_planner import TilePlanner

# What is dense is for this method to decide, not for those of its maps.
_OPEN: dict[str, Any] = {"dense_steps": 0, "dense_layers": 0, "min_tokens": 0, "break_even": 1.0}
_TILE = 128  # of a map of everything
_MAPS, _PARTS = "maps", "parts"  # in the state, and in a plan's `extra`


@method("head_wise")
@dataclass(frozen=True, kw_only=True)
class HeadWiseConfig(TileOptions):
    """A map of its own for each head, chosen among those of other methods.

    Options that all methods share are described in `TileOptions`. Where given here, they hold for
    all maps; by default each map brings its own.

    Args:
        maps: attention methods with their options, as texts, such as `sla:critical=0.1`. Dense
            steps and layers, and the least length, are those of this config.
        heads: per attention layer, the number in `maps` of what serves each head, from 0; heads
            that share keys have one map. Empty gives the maps to the heads in turn.
    """

    maps: tuple[str, ...] = ()
    heads: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in self.maps:
            _map_of(text)
        numbers = {number for layer in self.heads for number in layer}
        wrong = sorted(n for n in numbers if not 0 <= n < len(self.maps))
        require(
            not wrong,
            f"heads names map {wrong[:1]}, but maps has {len(self.maps)}: give numbers from 0 to "
            f"{len(self.maps) - 1}",
        )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`: the first examples of some other methods, in turn."""
        others = [
            kind.examples()[0]
            for kind in methods().values()
            if issubclass(kind, AttentionConfig) and kind is not cls and kind.examples()
        ][-3:]
        open_to_all = cls(min_tokens=0, dense_steps=0, break_even=1.0)
        exact, skipping = (
            tuple(method_spec(getattr(one, which)) for one in others)
            for which in ("exact", "skipping")
        )
        return (Example(replace(open_to_all, maps=exact), replace(open_to_all, maps=skipping)),)

    def planner(self) -> HeadWisePlanner:
        """What the seam carries out.

        Raises:
            ConfigError: there are no maps.
        """
        return HeadWisePlanner(self)


def _map_of(text: str) -> Any:
    """The config of a map.

    Raises:
        ConfigError: the text is not that of one attention method, or of this one.
    """
    config = parse_spec(text)
    found = config.attention
    require(
        found is not None and config.cache is None and not isinstance(found, HeadWiseConfig),
        f"maps holds {text!r}; give one attention method each, other than head_wise itself",
    )
    return found


class HeadWisePlanner(TilePlanner):
    """Asks the planner of each map for a plan of the heads that it serves."""

    def __init__(self, config: HeadWiseConfig) -> None:
        super().__init__(config)
        require(
            bool(config.maps),
            "head_wise needs maps; ditaccel bench maps chooses them and writes a config",
        )
        given = {
            f.name: getattr(config, f.name)
            for f in fields(TileOptions)
            if getattr(config, f.name) != f.default
        }
        self._planners: list[Planner] = []
        for text in config.maps:
            own = _map_of(text)
            shared = {k: v for k, v in (given | _OPEN).items() if k in own.__dataclass_fields__}
            self._planners.append(planner_of(replace(own, **shared)))
        other = [p.precision for p in self._planners if p.precision != self.precision]
        require(
            not other,
            f"maps has precision={other[:1]} where head_wise has {self.precision!r}; give it to "
            "head_wise, for all maps",
        )
        self.least_steps = max(planner.least_steps for planner in self._planners)

    def attach(self, name: str, transformer: nn.Module, ledger: PatchLedger) -> None:
        """See `Planner`."""
        for planner in self._planners:
            planner.attach(name, transformer, ledger)

    def begin(self, name: str, step: DenoisingStep) -> None:
        """See `Planner`."""
        for planner in self._planners:
            planner.begin(name, step)

    def end(self, name: str) -> None:
        """See `Planner`."""
        for planner in self._planners:
            planner.end(name)

    def served(self, context: LayerContext, heads: int, group: int) -> list[tuple[int, list[int]]]:
        """Numbers of the maps of a layer, and the heads that each serves, of those that are here.

        Raises:
            ConfigError: the choice was made for another model.
        """
        chosen = context.share.own(self._chosen(context, heads, group), heads)
        return [(n, [h for h, m in enumerate(chosen) if m == n]) for n in sorted(set(chosen))]

    def _chosen(self, context: LayerContext, heads: int, group: int) -> Sequence[int]:
        """The number of the map of each head of the layer, of which so many are here."""
        every = context.share.total(heads)
        chosen: Sequence[int] = [h // group % len(self._planners) for h in range(every)]
        if self.config.heads:
            require(
                len(self.config.heads) == context.layers,
                f"heads has {len(self.config.heads)} layers, but the transformer has "
                f"{context.layers} attention layers; choose maps for this model",
            )
            chosen = self.config.heads[context.layer]
            require(
                len(chosen) == every,
                f"heads has {len(chosen)} heads in layer {context.layer}, but there are {every}; "
                "choose maps for this model",
            )
            require(
                all(number == chosen[h // group * group] for h, number in enumerate(chosen)),
                f"heads gives different maps to heads of layer {context.layer} that share their "
                f"keys, {group} each; choose maps for this model",
            )
        return chosen

    def warm_up(
        self, q: Tensor, k: Tensor, scale: float, context: LayerContext, state: State
    ) -> None:
        """See `TilePlanner`."""
        within = self._within(context)
        for number, heads in self.served(context, q.shape[1], q.shape[1] // k.shape[1]):
            planner = self._planners[number]
            if isinstance(planner, TilePlanner):
                own = OfHeads(heads, q.shape[1] // k.shape[1])
                tensors = own.queries(q), own.keys(k)
                planner.warm_up(*tensors, scale, within, _own(state, number))

    def _within(self, context: LayerContext) -> LayerContext:
        """Where the call of a map is, which sees the heads that it serves here, and no others.

        Raises:
            ConfigError: a map would have to see those of other ranks.
        """
        if context.share.ranks is None:
            return context
        pairs = zip(self.config.maps, self._planners, strict=True)
        other = next((text for text, planner in pairs if planner.compares_heads), None)
        require(
            other is None,
            f"maps holds {other!r}, which compares the heads that it serves with each other, and "
            "ranks share these out; give it per_head=false, or leave it out",
        )
        return replace(context, share=ALL_HEADS)

    def sparse(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan:
        """See `TilePlanner`."""
        group, within = q.shape[1] // k.shape[1], self._within(context)
        parts: list[tuple[list[int], Plan]] = []
        learn: list[tuple[Planner, Plan, State]] = []
        for number, heads in self.served(context, q.shape[1], group):
            own = OfHeads(heads, group)
            tensors = own.queries(q), own.keys(k), own.keys(v)
            planner, kept = self._planners[number], _own(state, number)
            plan = planner.plan(*tensors, scale, within, kept)
            if isinstance(plan, Dense):
                tiling = Tiling.fixed(context.length, _TILE)
                plan = Plan(TileMap.dense(tiling, tiling, q.device), plan.reason)
            require(
                plan.branch is None,
                f"{self.config.maps[number]} adds a branch that was trained for all heads; leave "
                "its weights out",
            )
            learn.append((planner, plan, kept))
            parts.append((heads, _placed(plan, own)))
        # what a plan is does not depend on which of the layer's heads are here
        several = len(set(self._chosen(context, q.shape[1], group))) > 1
        plan = Plan.of_heads(parts, apart=several)
        blind = any(part.blind for _, part in parts)
        if context.share.ranks is not None and self.pays_below < 1:
            # whether the layer is judged must be one decision of all ranks
            blind = bool(context.share.sum(torch.tensor(int(blind), device=q.device)))
        return replace(plan, reason="head-wise", blind=blind, extra={_PARTS: learn})

    def update(self, plan: Plan, result: TileAttentionOutput, state: State) -> None:
        """Each map learns from what the kernel saw of its heads."""
        parts = result.parts if isinstance(result, OutputOfParts) else [result]
        for (planner, own, kept), seen in zip(plan.extra[_PARTS], parts, strict=True):
            if seen.keep is not None or own.marking is None:
                planner.update(own, seen, kept)


def _placed(plan: Plan, own: OfHeads) -> Plan:
    """A plan of some heads, as it is carried out on the tensors of all."""
    if plan.heads is not None:
        return replace(plan, parts=tuple(_placed(part, own) for part in plan.parts))
    return replace(plan, order=own.then(plan.order))


def _own(state: State, number: int) -> State:
    """The state of one of the maps."""
    made: State = state.setdefault((_MAPS, number), {})
    return made
