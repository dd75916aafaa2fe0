"""AttentionRuntime: carries a planner out on the self-attention layers of one transformer."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core.denoising.per_loop import PerLoop
from ..core.denoising.tracker import DenoisingStep
from ..core.patching import PatchLedger
from ..core.stopwatch import Stopwatch
from ..errors import UnsupportedError
from ..kernels import (
    TileMap,
    inverse_permute,
    moment_attention_backends,
    permute,
    tile_attention,
    tile_attention_backends,
)
from ..pipelines import submodule
from ..pipelines.grids import Grid
from .masks import KeyMask, NotKeyPadding
from .payoff import RESTING, Payoff
from .planner import Attaching, Dense, LayerContext, Plan, Planner, State, Watcher
from .processor import AttentionModule, ProcessorSeam
from .records import AttentionLog, AttentionRecord, thumbnail

_WITHOUT_TRITON = ("cpu",)
_WITH_MOMENTS = ("training_free", "combined")  # modes of SLA


def find_attention(
    transformer: nn.Module, contracts: tuple[Any, ...], dense: str = ""
) -> list[AttentionModule]:
    """Return the self-attention modules in the order in which they run.

    Args:
        transformer: the transformer.
        contracts: of its adapter.
        dense: the adapter's reason where there are none.

    Raises:
        UnsupportedError: there are none.
    """
    found = []
    for container, group in itertools.groupby(contracts, lambda contract: contract.container):
        named = list(group)
        for i, block in enumerate(getattr(transformer, container, None) or ()):
            for contract in named:
                module = submodule(block, contract.module)
                if module is not None:
                    name = f"{container}.{i}.{contract.module}"
                    found.append(AttentionModule(name, module, contract.breaks_graph))
    if not found:
        raise UnsupportedError(
            f"attention methods do not apply to {type(transformer).__name__}, caching does: "
            + (dense or "it has no self-attention module that its family's adapter names")
        )
    return found


@dataclass
class _Now:
    """The transformer call that runs.

    Attributes:
        step: where it stands.
        tokens: image or video tokens, None where the family does not tell.
        grid: their frames, rows and columns, likewise.
        calls: attention calls so far, by layer (Mochi makes one for each item of the batch).
        densities: of the maps so far that know what to leave out.
        promised: of layers that rest before a map of theirs was tried.
        reached: layers that made an attention call.
    """

    step: DenoisingStep
    tokens: int | None
    grid: Grid | None = None
    calls: Counter[int] = field(default_factory=Counter)
    densities: list[Tensor] = field(default_factory=list)
    promised: list[Tensor] = field(default_factory=list)
    reached: set[int] = field(default_factory=set)


class AttentionRuntime(PerLoop):
    """Replaces the attention of one transformer by what a planner says.

    Args:
        name: component name of the transformer, for the report.
        transformer: the module.
        adapter: its family.
        planner: of the attention method.
        warn: called with one line when something needs the user's eye.

    Attributes:
        planner: as given; another one may take its place between two transformer calls.
        beside_a_cache: whether another cache skips attention calls.
    """

    of_a_loop = (
        "_states",
        "_masks",
        "_padding",
        "_grids",
        "_refused",
        "_off",
        "_reasons",
        "_payoff",
        "_sparse",
        "_reached",
    )
    of_a_call = "_now"
    beside_a_cache = False

    def __init__(
        self,
        name: str,
        transformer: nn.Module,
        adapter: Any,
        planner: Planner,
        warn: Callable[[str], None],
    ) -> None:
        self._name, self._adapter, self._warn = name, adapter, warn
        self.planner = planner
        self._transformer = transformer
        self._config = getattr(transformer, "config", None)
        self._modules = find_attention(transformer, adapter.attention, adapter.no_attention_because)
        self.log = AttentionLog(name, [m.name for m in self._modules])
        self._seam = ProcessorSeam(self._modules, self._attend)
        self._first_with: dict[str, str] = {}  # layers with masks that nothing can be done with
        self._now: _Now | None = None
        self._looked_at_backend = False
        self._dense_layers = 0  # whose processors cannot be wrapped
        self._fresh()

    def _fresh(self) -> None:
        self._states: dict[tuple[str, int, int], State] = {}
        self._masks: dict[str, KeyMask] = {}  # the last one of each branch
        self._padding: set[tuple[str, int]] = set()  # layers whose masks are key padding, likewise
        self._grids: dict[tuple[int, str, torch.Size], Grid | None] = {}
        self._refused: set[tuple[str, int]] = set()  # layers like that, in this generation
        self._off = ""
        self._reasons: set[Dense] = set()
        self._payoff = Payoff(self._name, self._warn)
        self._sparse = False
        self._reached: set[str] = set()  # branches

    @property
    def layers(self) -> int:
        """Number of self-attention layers."""
        return len(self._modules)

    def install(self, ledger: PatchLedger) -> None:
        """Wrap the attention processors."""
        if isinstance(self.planner, Attaching):
            self.planner.attach(self._name, self._transformer, ledger)
        self.install_seam(ledger)

    def install_seam(self, ledger: PatchLedger) -> None:
        """Wrap the attention processors, for a planner that is attached already."""
        self._seam.install(ledger)

    def clear(self) -> None:
        """Forget everything: a new generation begins, or the last one broke off."""
        self._end()
        self._now = None
        self._fresh()

    def begin_generation(self, step: DenoisingStep) -> None:
        """Check what can change between generations."""
        self.log.maps.clear()
        if step.total is not None and step.total < self.planner.least_steps:
            self._turn_off(
                f"{step.total} steps are too few for this attention method (it needs "
                f"{self.planner.least_steps}); attention stays dense"
            )

    def begin(
        self,
        step: DenoisingStep,
        sample: Tensor,
        conditions: bool = False,
        named: Mapping[str, Any] | None = None,
    ) -> None:
        """A transformer call begins.

        Args:
            step: where it stands.
            sample: the latents.
            conditions: whether condition images come with them, in an order that is not known.
            named: the transformer's arguments by name.
        """
        self._follow_processors()
        if conditions and not self._off:
            self._turn_off(
                "condition images are in one sequence with the text, and where is not known; "
                "attention stays dense"
            )
        adapter, named = self._adapter, named or {}
        tokens = None if adapter.tokens is None else adapter.tokens(self._config, sample.shape)
        if tokens is not None and adapter.extra_tokens is not None:
            shapes = {k: tuple(v.shape) for k, v in named.items() if isinstance(v, Tensor)}
            tokens += adapter.extra_tokens(self._config, shapes)
        self._now = _Now(step, tokens, self._grid(step, sample, named))
        if isinstance(self.planner, Attaching) and not self._off:
            self.planner.begin(self._name, step)

    def _follow_processors(self) -> None:
        """Processors may have been exchanged since the last call."""
        refused = self._seam.follow()
        if refused:
            why = next(iter(refused.values()))
            self._warn(
                f"{self._name}: {len(refused)} of {self.layers} attention layers run dense, since "
                f"their processors were replaced after accelerate(): {why}"
            )
        self._dense_layers = len(refused)

    def _grid(self, step: DenoisingStep, sample: Tensor, named: Mapping[str, Any]) -> Grid | None:
        """Where the tokens lie; looked at once a generation, since a rule may wait for a device."""
        key = (step.generation, step.branch, sample.shape)
        if key not in self._grids:
            if step.generation not in {known[0] for known in self._grids}:
                self._grids.clear()
            self._grids[key] = self._adapter.grid(self._config, tuple(sample.shape), named)
        return self._grids[key]

    def _end(self) -> None:
        if isinstance(self.planner, Attaching):
            self.planner.end(self._name)

    def finish(self) -> int:
        """The transformer call has returned; says how many layers made no attention call in it."""
        self._end()
        now, self._now = self._now, None
        if now is None:
            return 0
        if now.step.branch in self._masks:
            self._masks[now.step.branch].release()
        total = now.step.total
        kept = [*now.densities, *now.promised]
        if kept and not self._sparse:
            self._payoff.say_resting(self.planner, kept)
        if total and now.step.index >= total // 2 and not self._off:
            why = self._payoff.gives_up(self.planner, now.densities)
            if why:
                self._turn_off(why, said=self._payoff.said)
        if now.step.is_last:
            self._say_no_effect(now.step.branch)
            self._states = {k: s for k, s in self._states.items() if k[0] != now.step.branch}
        # of none there is a line at the end, if it is so in all steps
        return self.layers - self._dense_layers - len(now.reached) if now.reached else 0

    def _say_no_effect(self, branch: str) -> None:
        """Say at the end of a generation that nothing of a branch was sparse, and why."""
        if branch not in self._reached:
            if self._dense_layers < self.layers and not self.beside_a_cache:  # which was said
                self._warn(
                    f"{self._name} ({branch}): its processors called attention in a way that is "
                    "not seen here (keys and values kept between steps?); attention stayed dense"
                )
        elif isinstance(self.planner, Watcher) or self._payoff.said:
            return
        elif not self._sparse and not all(dense.said for dense in self._reasons):
            reasons = sorted({dense.reason for dense in self._reasons})
            self._warn(
                f"{self._name}: no attention call of a whole generation was sparse "
                f"({', '.join(reasons)}); lower dense_steps or dense_layers, or "
                "leave attention alone for this model"
            )

    def _turn_off(self, why: str, said: bool = False) -> None:
        self._off = why
        if not said:
            self._warn(f"{self._name}: {why}")
        self._states.clear()

    # -- one attention call --

    def _attend(
        self,
        layer: int,
        dense: Callable[[], Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float | None,
    ) -> Tensor:
        now = self._now
        if now is None:
            return dense()
        self._reached.add(now.step.branch)
        now.reached.add(layer)
        watch = Stopwatch(q.device)
        planned = self._plan(layer, now, q, k, v, mask, scale)
        watch.lap()
        density: float | Tensor = 1.0
        if isinstance(planned, Dense):
            out = dense()
            reason, sparse = planned.reason, False
            self._reasons.add(planned)
        else:
            plan, keys, state = planned
            out = self._run(plan, q, k, v, keys, scale, state)
            reason, sparse = plan.reason, True
            self._sparse = True
            density = kept = plan.tile_map.densities().mean()
            if not plan.blind:
                now.densities.append(kept)
            if plan.marking is not None:
                self._payoff.too_full(self.planner, plan, now.step.index, state)
            self.log.maps[layer, now.step.branch, now.step.index] = thumbnail(plan.tile_map)
        watch.lap()
        step = now.step
        self.log.add(
            AttentionRecord(
                generation=step.generation,
                step=step.index,
                branch=step.branch,
                transformer=self._name,
                layer=layer,
                density=density,
                reason=reason,
                sparse=sparse,
                watch=watch,
            )
        )
        return out

    def _plan(
        self,
        layer: int,
        now: _Now,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float | None,
    ) -> Dense | tuple[Plan, Tensor | None, State]:
        if self._off:
            return Dense("turned off", said=True)
        length = q.shape[2]
        if length < self.planner.least_tokens:
            self._warn(
                f"{self._name}: sequences of {length} tokens are too short for this attention "
                f"method (min_tokens={self.planner.least_tokens}); attention stays dense"
            )
            return Dense("short sequence", said=True)
        if not q.dtype == k.dtype == v.dtype:
            kinds = ", ".join(str(x.dtype).removeprefix("torch.") for x in (q, k, v))
            self._warn(
                f"{self._name}: queries, keys and values differ in dtype ({kinds}); attention "
                "stays dense (torch.autocast casts them alike)"
            )
            return Dense("mixed dtypes", said=True)
        text = self._text(length, now.tokens)
        keys = mask
        if mask is not None:
            place = (now.step.branch, layer)
            if place in self._refused:
                return Dense("mask", said=True)  # looking at it again would wait for the device
            try:
                keys = self._key_mask(place, mask)
            except NotKeyPadding as error:
                self._refused.add(place)
                first = self._first_with.setdefault(str(error), self._modules[layer].name)
                self._warn(f"{first} (and layers like it): {error}; attention stays dense")
                return Dense("mask", said=True)
        shared = getattr(self.planner, "shares_branches", False)
        branch = "" if shared else now.step.branch
        state = self._state((branch, layer, now.calls[layer]), q, k)
        now.calls[layer] += 1
        rest = self._payoff.resting(now.step.index, state)
        context = LayerContext(now.step, layer, self.layers, length, text, keys=keys, grid=now.grid)
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        if rest is None:
            rest = self._payoff.cannot_pay(self.planner, q, k, factor, context, state)
        plan: Plan | Dense = Dense(RESTING, said=True)
        if rest is None:
            plan = self.planner.plan(q, k, v, factor, context, state)
        if isinstance(plan, Plan) and plan.marking is None:
            rest = self._payoff.too_full(self.planner, plan, now.step.index, state)
        if rest is not None:
            (now.promised if rest.promised else now.densities).append(rest.kept)
            return Dense(RESTING, said=True)
        return plan if isinstance(plan, Dense) else (plan, keys, state)

    def _text(self, length: int, tokens: int | None) -> tuple[int, int] | None:
        side = self._adapter.text
        if side == "none" or tokens is None or tokens >= length:
            return None
        return (0, length - tokens) if side == "front" else (tokens, length)

    def _key_mask(self, place: tuple[str, int], mask: Tensor) -> Tensor | None:
        """The mask as key padding, for a branch and layer.

        Of masks of all pairs of tokens, each layer's is looked at in full once a generation.
        """
        branch, _ = place
        known = self._masks.get(branch)
        if known is None or not known.covers(mask, trusted=place in self._padding):
            known = self._masks[branch] = KeyMask(mask)
        self._padding.add(place)
        return known.keys

    def _state(self, key: tuple[str, int, int], q: Tensor, k: Tensor) -> State:
        fingerprint = (q.shape, k.shape, q.dtype, q.device)
        state = self._states.get(key)
        if state is None or state["fingerprint"] != fingerprint:
            state = self._states[key] = {"fingerprint": fingerprint}
        return state

    def _say_backend(self, q: Tensor, k: Tensor, v: Tensor, tile_map: TileMap) -> None:
        """A slower backend than the device is meant for is said, once."""
        if self._looked_at_backend:
            return
        self._looked_at_backend = True
        kernel, reason = "kernel", tile_attention_backends(q, k, v, tile_map)["triton"]
        if reason is None and getattr(self.planner, "mode", None) in _WITH_MOMENTS:
            tilings = tile_map.q_tiling, tile_map.k_tiling
            every = torch.ones((1, 1, *(t.tiles for t in tilings)), dtype=torch.bool)
            kernel = "kernel of moments"
            reason = moment_attention_backends(q, k, v, every, *tilings)["triton"]
        if reason is not None:
            self._warn(
                f"{self._name}: the Triton {kernel} cannot run here ({reason}); a slower backend "
                "does"
            )

    def _run(
        self,
        plan: Plan,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        keys: Tensor | None,
        scale: float | None,
        state: State,
    ) -> Tensor:
        if self.planner.backend is None and q.device.type not in _WITHOUT_TRITON:
            self._say_backend(q, k, v, plan.tile_map)
        if plan.attend is not None:
            return plan.attend(q, k, v, keys)
        if plan.q_order is not None:
            q = permute(q, plan.q_order)
        if plan.k_order is not None:
            k, v = permute(k, plan.k_order), permute(v, plan.k_order)
            if keys is not None:
                order = plan.k_order.long()
                keys = keys[:, None, :].expand(order.shape).gather(-1, order)
                keys = keys.repeat_interleave(q.shape[1] // k.shape[1], 1)[:, :, None, :]
        result = tile_attention(
            q,
            k,
            v,
            plan.tile_map,
            scale=scale,
            mask=keys,
            marking=plan.marking,
            centroids=plan.centroids,
            backend=self.planner.backend,
        )
        out = result.output
        if plan.q_order is not None:
            out = inverse_permute(out, plan.q_order)
        self.planner.update(plan, result, state)
        return out
