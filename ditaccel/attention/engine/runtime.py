"""AttentionRuntime: carries a planner out on the self-attention layers of one transformer."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ...core.denoising.per_loop import PerLoop
from ...core.denoising.tracker import DenoisingStep
from ...core.exchange import Exchange, places, shares
from ...core.patching import PatchLedger
from ...core.ranks import ALL_HEADS, HeadShare
from ...core.stopwatch import Stopwatch
from ...errors import UnsupportedError
from ...pipelines import submodule
from ...pipelines.grids import Grid
from .attend import attend, slower_kernel
from .masks import NotKeyPadding
from .payoff import LayerState, Payoff
from .planner import Dense, DenseReason, LayerContext, Plan, Planner
from .processor import AttentionModule, ProcessorSeam, Split
from .records import AttentionLog, AttentionRecord, thumbnail
from .state import CallInProgress, LayerCall, LoopMemory

_WITHOUT_TRITON = ("cpu",)


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


def _mean_density(plan: Plan, call: LayerCall) -> Tensor:
    """Kept share of the attention matrix, mean over all heads of the layer."""
    found = plan.tile_map.densities()
    if call.share.ranks is not None:
        found = call.share.every(found.expand(-1, call.q.shape[1]), 1)
    return found.mean()


class AttentionRuntime(PerLoop):
    """Replaces the attention of one transformer by what a planner says.

    Args:
        name: component name of the transformer, for the report.
        transformer: the module.
        adapter: its family.
        planner: of the attention method.
        warn: called with one line when something needs the user's eye.

    Attributes:
        log: its attention calls.
        beside_a_cache: whether another cache skips attention calls.
    """

    of_a_loop = ("_loop",)
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
        self._planner, self._transformer = planner, transformer
        self._modules = find_attention(transformer, adapter.attention, adapter.no_attention_because)
        self.log = AttentionLog(name, [m.name for m in self._modules], planner.precision)
        self._seam = ProcessorSeam(self._modules, self._attend)
        self._first_with: dict[str, str] = {}  # the first layer with a mask of each refused kind
        self._now: CallInProgress | None = None
        self._looked_at_backend = False
        self._dense_layers = 0  # whose processors cannot be wrapped
        self._fresh()

    def _fresh(self) -> None:
        self._loop = LoopMemory(Payoff(self._name, self._planner, self._warn))

    @property
    def layers(self) -> int:
        """Number of self-attention layers."""
        return len(self._modules)

    def install(self, ledger: PatchLedger) -> None:
        """Wrap the attention processors."""
        self._planner.attach(self._name, self._transformer, ledger)
        self._seam.install(ledger)

    def clear(self) -> None:
        """Forget everything: a new generation begins, or the last one broke off."""
        self._planner.end(self._name)
        self._now = None
        self._fresh()

    def begin_generation(self, step: DenoisingStep) -> None:
        """Check what can change between generations."""
        self.log.maps.clear()
        if step.total is not None and step.total < self._planner.least_steps:
            self._turn_off(
                f"{step.total} steps are too few for this attention method (it needs "
                f"{self._planner.least_steps}); attention stays dense"
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
            step: where it is.
            sample: the latents.
            conditions: whether condition images come with them, in an order that is not known.
            named: the transformer's arguments by name.
        """
        self._follow_processors()
        if conditions and not self._loop.off:
            self._turn_off(
                "condition images are in one sequence with the text, and where is not known; "
                "attention stays dense"
            )
        adapter, named = self._adapter, named or {}
        config = getattr(self._transformer, "config", None)
        grid = self._grid(config, step, sample, named)
        self._now = CallInProgress.of(step, adapter, config, sample, named, grid)
        if self._now is None:
            self._now = CallInProgress(step, adapter, None, grid)
            if not self._loop.off:
                self._turn_off(
                    "where the text of this batch is in its sequences is not known (prompts of two "
                    "lengths?); attention stays dense"
                )
        if not self._loop.off:
            self._planner.begin(self._name, step)

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

    def _grid(
        self, config: Any, step: DenoisingStep, sample: Tensor, named: Mapping[str, Any]
    ) -> Grid | None:
        """Where the tokens lie; looked at once per generation: a rule may wait for a device."""
        key, known = (step.branch, sample.shape), self._loop.grids
        if key not in known:
            known[key] = self._adapter.grid(config, tuple(sample.shape), named)
        return known[key]

    def finish(self) -> int:
        """The transformer call has returned; how many layers made no attention call in it."""
        self._planner.end(self._name)
        now, self._now = self._now, None
        if now is None:
            return 0
        loop, total = self._loop, now.step.total
        loop.masks.release(now.step.branch)
        kept = [*now.densities, *now.promised]
        if kept and not loop.sparse:
            loop.payoff.warn_pausing(kept)
        if total and now.step.index >= total // 2 and not loop.off:
            why = loop.payoff.gives_up(now.densities)
            if why:
                self._turn_off(why, warned=loop.payoff.warned)
        if now.step.is_last:
            self._warn_no_effect(now.step.branch)
            loop.states = {k: s for k, s in loop.states.items() if k[0] != now.step.branch}
        # of none there is a line at the end, if it is so in all steps
        return self.layers - self._dense_layers - len(now.reached) if now.reached else 0

    def _warn_no_effect(self, branch: str) -> None:
        """Warn at the end of a generation that nothing of a branch was sparse, and why."""
        loop = self._loop
        if branch not in loop.reached:
            if self._dense_layers < self.layers and not self.beside_a_cache:  # which has a warning
                self._warn(
                    f"{self._name} ({branch}): its processors called attention in a way that is "
                    "not seen here (keys and values kept between steps?); attention stayed dense"
                )
        elif loop.sparse or loop.payoff.warned:
            return
        elif not all(dense.kind.explained for dense in loop.reasons):
            reasons = sorted({dense.reason for dense in loop.reasons})
            self._warn(
                f"{self._name}: no attention call of a whole generation was sparse "
                f"({', '.join(reasons)}); lower dense_steps, dense_parts or "
                "dense_layers, or leave attention alone for this model"
            )

    def _turn_off(self, why: str, warned: bool = False) -> None:
        self._loop.off = why
        if not warned:
            self._warn(f"{self._name}: {why}")
        self._loop.states.clear()

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
        split: Split | None = None,
    ) -> Tensor:
        now = self._now
        if now is None:
            return dense()
        if split is None:
            return self._one(now, layer, dense, q, k, v, mask, scale)
        name = self._modules[layer].name
        rows = 1 if mask is None or mask.ndim == 2 else mask.shape[-2]
        if mask is not None and (rows > 1 or mask.shape[-1] != q.shape[2]):
            self._warn(
                f"{name} (and layers like it): its mask is not one of this rank's keys; attention "
                "stays dense"
            )
            return dense()
        self.log.rank = split.ranks.here, split.ranks.count
        q_share, k_share = (shares(x.shape[1], split.ranks, split.uneven, name) for x in (q, k))
        exchange = self._exchange(split, q, now)
        q = exchange.to_heads(q, q_share)
        k, v = (exchange.to_heads(x, k_share) for x in (k, v))
        if mask is not None:
            mask = exchange.mask(mask)
        of_heads = functools.partial(split.dense, q, k, v, mask)
        out = self._one(now, layer, of_heads, q, k, v, mask, scale, q_share)
        return exchange.to_tokens(out, q_share)

    def _exchange(self, split: Split, q: Tensor, now: CallInProgress) -> Exchange:
        """The exchange around a call of which every rank has a part of the tokens."""
        ranks, own = split.ranks, q.shape[2]
        lengths = ranks.sizes(own, q.device) if split.uneven else [own] * ranks.count
        found, text = None, now.text(sum(lengths))
        if text is None or not any(block.encoder for block in self._adapter.blocks):
            found = places(lengths)
        else:
            found = places(lengths, text[1] - text[0], in_front=text[0] == 0)
        if found is None and not self._loop.off:
            self._turn_off(
                "where the text is in sequences that ranks share out in this way is not known; "
                "attention stays dense"
            )
        return Exchange(ranks, found or places(lengths) or ())

    def _one(
        self,
        now: CallInProgress,
        layer: int,
        dense: Callable[[], Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float | None,
        share: HeadShare = ALL_HEADS,
    ) -> Tensor:
        """One attention call on whole sequences."""
        loop = self._loop
        loop.reached.add(now.step.branch)
        now.reached.add(layer)
        watch = Stopwatch(q.device)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        call = LayerCall(layer, q, k, v, mask, scale, share)
        planned = self._plan(call, now)
        watch.lap()
        density: float | Tensor = 1.0
        cause: DenseReason | None = None
        if isinstance(planned, Dense):
            out = dense()
            reason, cause = planned.reason, planned.kind
            loop.reasons.add(planned)
        else:
            plan, kept, key_mask, state = planned
            out = self._run(plan, call, key_mask, state)
            reason = plan.reason
            loop.sparse = True
            density = kept
            if not plan.blind:
                now.densities.append(kept)
            if plan.marking is not None:
                loop.payoff.too_full(plan, kept, now.step.index, state)
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
                cause=cause,
                watch=watch,
            )
        )
        return out

    def _plan(
        self, call: LayerCall, now: CallInProgress
    ) -> Dense | tuple[Plan, Tensor, Tensor | None, LayerState]:
        dense = self._not_open(call)
        if dense is not None:
            return dense
        key_mask = None
        if call.mask is not None:
            branch = now.step.branch
            if self._loop.masks.refused(branch, call.layer):
                return Dense(DenseReason.MASK)  # looking at it again would wait for the device
            try:
                image = now.image(call.q.shape[2])
                key_mask = self._loop.masks.key_mask(branch, call.layer, call.mask, image)
            except NotKeyPadding as error:
                first = self._first_with.setdefault(str(error), self._modules[call.layer].name)
                self._warn(f"{first} (and layers like it): {error}; attention stays dense")
                return Dense(DenseReason.MASK)
        planned = self._planned(call, now, key_mask)
        if isinstance(planned, Dense):
            return planned
        plan, kept, state = planned
        return plan, kept, key_mask, state

    def _not_open(self, call: LayerCall) -> Dense | None:
        """Why no planner is asked for this call."""
        q, k, v = call.q, call.k, call.v
        if self._loop.off:
            return Dense(DenseReason.TURNED_OFF)
        if q.shape[2] < self._planner.least_tokens:
            self._warn(
                f"{self._name}: sequences of {q.shape[2]} tokens are too short for this attention "
                f"method (min_tokens={self._planner.least_tokens}); attention stays dense"
            )
            return Dense(DenseReason.SHORT)
        if not q.dtype == k.dtype == v.dtype:
            kinds = ", ".join(str(x.dtype).removeprefix("torch.") for x in (q, k, v))
            self._warn(
                f"{self._name}: queries, keys and values differ in dtype ({kinds}); attention "
                "stays dense (torch.autocast casts them alike)"
            )
            return Dense(DenseReason.MIXED_DTYPES)
        return None

    def _planned(
        self, call: LayerCall, now: CallInProgress, key_mask: Tensor | None
    ) -> Dense | tuple[Plan, Tensor, LayerState]:
        """What the planner says, unless the layer rests since its maps do not pay.

        Returns:
            Why it is dense; or the plan, its mean density, and the state that it belongs to.
        """
        payoff, planner = self._loop.payoff, self._planner
        layer, index = call.layer, now.step.index
        q, k, v, scale = call.q, call.k, call.v, call.scale
        branch = "" if planner.shares_branches else now.step.branch
        state = self._loop.state((branch, layer, now.calls[layer]), q, k)
        now.calls[layer] += 1
        length = q.shape[2]
        context = LayerContext(
            step=now.step,
            layer=layer,
            layers=self.layers,
            length=length,
            text=now.text(length),
            key_mask=key_mask,
            grid=now.grid,
            conditions=now.conditions(length),
            padding=now.filled(length),
            component=self._name,
            share=call.share,
        )
        pause = (
            state.paused(index)
            or payoff.was_too_full(index, state)
            or payoff.cannot_pay(q, k, scale, context, state)
        )
        if pause is None:
            plan = planner.plan(q, k, v, scale, context, state.planner)
            if isinstance(plan, Dense):
                if plan.kind is DenseReason.FIRST_STEPS:
                    payoff.look_ahead(q, k, scale, context, state)
                return plan
            kept = _mean_density(plan, call)
            if plan.marking is None:
                pause = payoff.too_full(plan, kept, index, state)
            if pause is None:
                return plan, kept, state
        (now.promised if pause.promised else now.densities).append(pause.kept)
        return Dense(DenseReason.RESTS)

    def _run(
        self, plan: Plan, call: LayerCall, key_mask: Tensor | None, state: LayerState
    ) -> Tensor:
        q, k, v, backend = call.q, call.k, call.v, self._planner.backend
        if backend is None and q.device.type not in _WITHOUT_TRITON:
            self._warn_of_backend(plan, q, k, v)
        result = attend(plan, q, k, v, call.scale, key_mask, backend, self._planner.precision)
        self._planner.update(plan, result, state.planner)
        return result.output

    def _warn_of_backend(self, plan: Plan, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Warn once if a kernel falls back to a slower backend than the device is meant for."""
        if self._looked_at_backend:
            return
        self._looked_at_backend = True
        reason = slower_kernel(plan, q, k, v, self._planner.precision)
        if reason:
            self._warn(f"{self._name}: {reason}; a slower backend does")
