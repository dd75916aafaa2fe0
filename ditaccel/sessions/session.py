"""One accelerated pipeline: loops, patches, block caches and the report, tied together.

A session stands in front of transformers, whoever calls them. Each denoising loop has its own
tracker and its own state (`loops.py`); what the methods keep is exchanged when another loop's call
comes. One transformer call runs at a time: threads wait for each other.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from .. import config as configs
from ..attention.planner import Planner
from ..attention.runtime import AttentionRuntime
from ..caching.blocks import find_blocks
from ..caching.budget import tensors_per_branch, unit
from ..caching.correction import CORRECTION_OFF
from ..caching.hooks import BlockCache
from ..caching.policy import too_few_steps
from ..config.completion import completed
from ..core._compat import ContextListener, ranks_of, refuse_split
from ..core.calls import Arguments, as_tensor, has_conditions
from ..core.denoising.leftover import Leftover
from ..core.denoising.loops import LONE_LINES, Loop, Loops, needs_gradients
from ..core.denoising.state import LoopState
from ..core.denoising.tracker import DenoisingStep, Lone
from ..core.patching import PatchLedger, patch_of, unwrapped
from ..core.reasons import Reason, advice, deciding
from ..core.stopwatch import Stopwatch
from ..core.transformers import family_of
from ..errors import UnsupportedError, UsageError
from ..pipelines import FamilyAdapter
from ..reports.journal import Journal
from ..reports.report import CallRecord, Report
from ..warning import warn
from .dry_run import DryRun
from .front import Front

_FORECAST = "forecast"


class Session:
    """Everything that `accelerate` put on one pipeline (or bare transformer).

    Args:
        pipe: the pipeline, or None for a bare transformer.
        transformers: component name -> transformer.
        config: what to do.
        planner: in place of the attention method's own (to calibrate it).
    """

    def __init__(
        self,
        pipe: Any,
        transformers: dict[str, nn.Module],
        config: configs.AccelerationConfig,
        planner: Planner | None = None,
    ) -> None:
        first = next(iter(transformers.values()))
        self.config, filled = completed(config, family_of(first))
        self._planner = planner
        self._fronts: dict[str, Front] = {}
        self._pipe = weakref.ref(pipe) if pipe is not None else lambda: None
        self._ledger = PatchLedger(owner=self)
        self._caches: dict[str, BlockCache] = {}
        self.transformers = transformers
        self._adapters = {name: family_of(part) for name, part in transformers.items()}
        self._unlearnt: set[str] = set()
        self._attention: dict[str, AttentionRuntime] = {}
        self._state = LoopState(self._caches, self._attention)
        self._loops = Loops(pipe, self._state.free)
        self._warned: set[str] = set()
        self.journal = Journal(
            next(iter(self._adapters.values())).name,
            " & ".join(m.method for m in config.methods),
            configs.to_dict(self.config),
            filled=filled,
        )
        self.is_on = False
        self.put_on()

    def put_on(self) -> None:
        """Patch the transformers, first or once more after `restore`: the journal goes on."""
        try:
            for name, transformer in self.transformers.items():
                self._install(name, transformer)
        except BaseException:
            self._ledger.undo()
            raise
        self.is_on = True

    @property
    def _outside(self) -> bool:
        """Whether nothing inside of the transformers is needed."""
        cache = self.config.cache
        return self.config.attention is None and cache is not None and cache.policy().outside

    def _install(self, name: str, transformer: nn.Module) -> None:
        inner, adapter = unwrapped(transformer), self._adapters[name]
        caches = self.config.cache is not None
        front = Front(name, transformer, self._pipe(), caches, self._outside, self._warn)
        self._fronts[name] = front
        self._note_ranks(name, inner)
        listener = ContextListener(inner)
        self._ledger.on_undo(listener.detach)
        front.stand(self._around(name, inner, listener, adapter), self._ledger)
        if not adapter.provisional:
            self._install_methods(name, inner, adapter, blocks=not front.whole)
            return
        self._say_assumptions(name, inner, adapter)
        if self._outside:
            self._install_methods(name, inner, adapter, blocks=False)
        elif not adapter.blocks:
            raise UnsupportedError(
                f"{type(inner).__name__} is of no known family, and no list of two or more blocks "
                "of one class stands directly in it; take a method with target='output' "
                "(adaptive_taylor), or write an adapter in pipelines/"
            )
        else:
            self._unlearnt.add(name)

    def _note_ranks(self, name: str, transformer: nn.Module) -> None:
        """Look at which ranks compute a transformer, and whether the methods can work with them."""
        if self.config.attention is not None:
            refuse_split(name, transformer, "an attention method")
        ranks = ranks_of(name, transformer)
        if name in self._caches:
            self._caches[name].computed_by(ranks)

    def _install_methods(
        self, name: str, transformer: nn.Module, adapter: FamilyAdapter, blocks: bool = True
    ) -> None:
        if self.config.cache is not None:
            policy = self.config.cache.policy()
            found = find_blocks(transformer, adapter.blocks) if blocks else []
            modules = [block.module for block in found]
            why = partial(self._fronts[name].neighbours.why_left_out, modules)
            cache = BlockCache(found, policy, self._warn, why)
            self._caches[name] = cache
            self.journal.tensors_per_branch = tensors_per_branch(policy, cache.blocks)
            self.journal.tensors = unit(policy)
            cache.install(self._ledger)
        if self.config.attention is not None:
            planner = self._planner or self.config.attention.planner()
            runtime = AttentionRuntime(name, transformer, adapter, planner, self._warn)
            self._attention[name] = runtime
            logs = {log.transformer: log for log in self.journal.attention}
            if name in logs:
                runtime.log = logs[name]
            else:
                self.journal.attention.append(runtime.log)
            runtime.install(self._ledger)

    def _say_assumptions(self, name: str, transformer: nn.Module, adapter: FamilyAdapter) -> None:
        lists = ", ".join(
            f"{b.container} ({len(getattr(transformer, b.container))})" for b in adapter.blocks
        )
        rest = (
            "nothing inside of it is touched"
            if self._outside
            else f"a dry run at the first call shows how its blocks work: {lists or 'none found'}"
        )
        self.journal.assume(
            f"{name}: timestep in {adapter.timestep!r}, latents in {adapter.sample!r}"
        )
        self._warn(
            f"{type(transformer).__name__} is of no family that ditaccel knows; assumed: its "
            f"timestep is {adapter.timestep!r}, its latents are {adapter.sample!r}; {rest}"
        )

    def _learn(
        self, name: str, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Put the methods on a transformer of no known family, from what a dry run shows."""
        transformer, adapter = unwrapped(self.transformers[name]), self._adapters[name]
        arguments = Arguments(transformer)
        sample = arguments.get(adapter.sample, args, kwargs)

        def run(latents: Any) -> None:
            changed_args, changed = arguments.exchanged(adapter.sample, latents, args, kwargs)
            inner(*changed_args, **changed)

        wants_attention = self.config.attention is not None
        with torch.no_grad():
            learnt, line = DryRun(transformer, adapter).learn(run, sample, wants_attention)
        before = self._ledger.changes
        try:
            self._install_methods(name, transformer, learnt)
        except BaseException:
            # the next call must find it as this one did, and give the same reason
            self._ledger.undo(keep=before)
            self._caches.pop(name, None)
            if name in self._attention:
                self.journal.attention.remove(self._attention.pop(name).log)
            raise
        self._unlearnt.discard(name)
        self.journal.assume(f"{name}: {line}")

    def _around(
        self,
        name: str,
        transformer: nn.Module,
        listener: ContextListener,
        adapter: FamilyAdapter,
    ) -> Callable[..., Any]:
        arguments = Arguments(transformer)

        def argument(key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value = arguments.get(key, args, kwargs)
            if value is None:
                raise UsageError(f"{name} was called without {key!r}; the tracker needs it")
            return value

        def around(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
            context = listener.current()  # (each thread has its own)
            state = self._state
            with state.lock:
                if state.calling:
                    with state.paused():
                        return inner(*args, **kwargs)
                state.calling = True
                watch = Stopwatch.at((*args, *kwargs.values()))
                try:
                    return one_call(inner, args, kwargs, context, watch)
                finally:
                    state.calling = False

        def one_call(
            inner: Callable[..., Any],
            args: tuple[Any, ...],
            kwargs: Any,
            context: Any,
            watch: Stopwatch,
        ) -> Any:
            self._ledger.reinstall()
            front = self._fronts[name]
            front.look(self._caches.get(name), self._attention.get(name), kwargs)
            if name in self._unlearnt:
                self._learn(name, inner, args, kwargs)
            cache, attention = self._caches.get(name), self._attention.get(name)
            if cache is not None:
                cache.check_compiled()
            timestep = argument(adapter.timestep, args, kwargs)
            given = [argument(key, args, kwargs) for key in adapter.samples]
            samples = [as_tensor(sample) for sample in given]
            if needs_gradients(transformer, samples):
                self._say_lone(name, Lone.GRADIENTS)
                return inner(*args, **kwargs)
            named = arguments.named(args, kwargs)
            loop, step = self._place(
                name, transformer, adapter, timestep, context, {**named, adapter.sample: given[0]}
            )
            if step.lone is not None:
                self._say_lone(name, step.lone)
                self._state.clear(name)
                self.journal.add(CallRecord.computed(name, step, step.lone.value))
                return inner(*args, **kwargs)
            call, output = None, None
            try:
                if attention is not None:
                    attention.begin(step, samples[0], has_conditions(given[0]), named)
                if cache is not None:
                    wanted = arguments.get("return_dict", args, kwargs, True)
                    call = cache.begin(step, samples, wanted)
                    output = cache.replayed(call)
                if output is None:
                    output = inner(*args, **kwargs)
                if cache is not None and call is not None:
                    output = cache.finish(call, output)
                if attention is not None:
                    missed = attention.finish()
                    if call is None or not call.forecasting:
                        front.say_missed(missed)
            except BaseException:
                loop.forget()
                raise
            self._book(name, step, call, loop)
            self.journal.time(watch)
            return output

        return around

    def _place(
        self,
        name: str,
        transformer: nn.Module,
        adapter: FamilyAdapter,
        timestep: Any,
        context: Any,
        named: dict[str, Any],
    ) -> tuple[Loop, DenoisingStep]:
        """Find the loop of a call and the call's place in it, with the loop's state at hand."""
        loop, caller = self._loops.find(transformer, timestep)
        self._state.enter(loop)
        try:
            traits = self._loops.conditions.traits(named, adapter.samples)
            step = loop.tracker.observe(
                name, timestep, context, adapter.preconditioned, traits, caller.scheduler
            )
            if step.generation != loop.generation:
                self._begin_generation(step, loop)
            if loop.active != name:
                # Wan 2.2 has moved on to its other transformer for good
                self._state.clear(loop.active)
                loop.active = name
        except BaseException:
            loop.forget()
            raise
        loop.watch(step, caller.mark)
        return loop, step

    def _say_lone(self, name: str, why: Lone) -> None:
        self._warn(f"{name}: {LONE_LINES[why]}", once=f"{name}: {why.name}")

    def _begin_generation(self, step: DenoisingStep, loop: Loop) -> None:
        loop.generation = step.generation
        loop.reasons.clear()
        loop.left = Leftover()
        self.journal.left = None
        for name, transformer in self.transformers.items():
            self._note_ranks(name, transformer)  # it may have been split since `accelerate`
            self._fronts[name].neighbours.refresh()
            self._fronts[name].meet_other_cache(self._attention.get(name))
        self._state.clear()
        for attention in self._attention.values():
            attention.begin_generation(step)
        if self._caches:
            self._begin_cache(step, next(iter(self._caches.values())))

    def _begin_cache(self, step: DenoisingStep, cache: BlockCache) -> None:
        if cache.policy.correction == "auto":
            self.journal.correction = "on" if step.additive else CORRECTION_OFF[step.known]
        assert self.config.cache is not None  # it made the policy
        line = too_few_steps(self.config.cache.method, cache.policy, step.total)
        if line is not None:
            self._warn(line)

    def _book(self, name: str, step: DenoisingStep, call: Any, loop: Loop) -> None:
        if call is None:
            self.journal.add(CallRecord.computed(name, step, "no caching method"))
            return
        cache, verdict = self._caches[name], call.verdict
        if verdict.error is not None and verdict.error != verdict.error:
            self._warn(
                f"{name} produced non-finite features at step {step.index} ({step.branch}): such "
                "steps are computed in full; check weights and dtype",
                once=f"{name}: {Reason.NON_FINITE}",
            )
        if call.left is not None:
            error, began = call.left
            loop.left.gap_ended((name, step.branch), error, began, step.total)
        if verdict.forecast:
            loop.reasons[_FORECAST] += 1
            if not call.follows:
                loop.left.forecast((name, step.branch))
        elif not call.follows:  # else the first branch's reason is the true one
            loop.reasons[verdict.reason] += 1
        if step.is_last:
            self._say_no_hits(step, cache, loop)
            self.journal.left = loop.left.value
        peaks = [c.memory.peak for c in self._caches.values()]
        self.journal.memory = {k: sum(p.get(k, 0) for p in peaks) for p in peaks for k in p}
        self.journal.add(
            CallRecord(
                generation=step.generation,
                step=step.index,
                branch=step.branch,
                transformer=name,
                timestep=step.timestep,
                sigma=step.sigma,
                action="forecast" if verdict.forecast else "compute",
                reason=verdict.text,
                cause=verdict.reason,
                error=verdict.error,
                blocks_run=call.blocks_run if cache.blocks else int(not verdict.forecast),
                blocks_total=len(cache.blocks) or 1,
                share=call.cost_run / cache.total_cost,
            )
        )

    def _say_no_hits(self, step: DenoisingStep, cache: BlockCache, loop: Loop) -> None:
        """A whole generation without a forecast, which nobody asked for, is said."""
        policy = cache.policy
        asked_for = policy.gate.skips_nothing(step.total)
        too_few = too_few_steps("", policy, step.total) is not None
        if loop.reasons[_FORECAST] or asked_for or too_few:
            return
        causes = {Reason(cause): n for cause, n in loop.reasons.items()}
        most = deciding(causes)
        if most is Reason.NON_FINITE:
            return  # which was said, and no threshold helps
        self._warn(
            f"a whole generation was computed and nothing forecast (mostly: {most.value}); "
            f"{advice(most)}"
        )

    def _warn(self, line: str, once: str = "") -> None:
        """Show a line, unless it, or one of the same kind, was shown."""
        if (once or line) in self._warned:
            return
        self._warned.add(once or line)
        self.journal.warnings.append(line)
        warn(line)

    def reset(self) -> None:
        """Free all state at once; every loop's next call begins a new generation."""
        with self._state.lock:
            self._loops.clear()
            self._state.leave()

    def report(self) -> Report:
        """Return what happened so far."""
        return self.journal.report()

    def restore(self) -> None:
        """Undo everything and free all state; a second call does nothing."""
        self.is_on = False
        self._ledger.undo()
        self.reset()


def sessions_of(parts: Iterable[nn.Module]) -> list[Session]:
    """Return the sessions that stand in front of these modules or parts of them."""
    found: dict[int, Session] = {}
    for part in parts:
        # Not the transformer alone: compiling it as a whole takes the place of its patch.
        for module in part.modules():
            patch = patch_of(module)
            if patch is not None and isinstance(patch.owner, Session):
                found[id(patch.owner)] = patch.owner
    return list(found.values())


def session_of(transformers: dict[str, nn.Module]) -> Session | None:
    """Return the session that stands in front of these transformers, if any."""
    return next(iter(sessions_of(transformers.values())), None)
