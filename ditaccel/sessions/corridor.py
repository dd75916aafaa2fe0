"""The way of a transformer call: observe, decide, forward or forecast, book."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..calls.engine.method import TransformerCall
from ..core._compat import ContextListener, NamedContext
from ..core.calls import Arguments, as_tensor, has_conditions
from ..core.denoising.loops import Loop, Loops, needs_gradients
from ..core.denoising.state import LoopState
from ..core.denoising.tracker import DenoisingStep, Lone
from ..core.patching import PatchLedger
from ..core.stopwatch import Stopwatch
from ..errors import DitaccelError, UsageError
from ..pipelines import FamilyAdapter
from .booking import Booking
from .front import Front
from .methods import Methods

Inner = Callable[..., Any]


@dataclass(frozen=True)
class _Seen:
    """A call as the methods see it.

    Attributes:
        timestep: the argument.
        samples: latents, one tensor `(B, …)` per stream.
        conditioned: whether condition images come with the latents.
        named: all arguments by name, latents of the first stream as they were given.
        wants_dict: the argument `return_dict`.
    """

    timestep: Any
    samples: list[Tensor]
    conditioned: bool
    named: dict[str, Any]
    wants_dict: Any


class Corridor:
    """Stands in front of one transformer and decides what its calls compute.

    Args:
        name: component name.
        transformer: the transformer, unwrapped.
        adapter: what is known of it.
        front: what else stands in front of it.
        listener: tells what the pipeline says of a call.
        ledger: of the session's patches.
        methods: of the session.
        loops: finds the loop of each call.
        state: of the loop that calls.
        booking: where calls are written down.
        begin_generation: called with the first step of each denoising loop.
        begins: called with it and the latents; None for nothing.
    """

    def __init__(
        self,
        name: str,
        transformer: nn.Module,
        adapter: FamilyAdapter,
        front: Front,
        listener: ContextListener,
        *,
        ledger: PatchLedger,
        methods: Methods,
        loops: Loops,
        state: LoopState,
        booking: Booking,
        begin_generation: Callable[[DenoisingStep, Loop], None],
        begins: Callable[[DenoisingStep, Tensor], None] | None = None,
    ) -> None:
        self._name, self._transformer, self._adapter = name, transformer, adapter
        self._front, self._listener, self._ledger = front, listener, ledger
        self._methods, self._loops, self._state = methods, loops, state
        self._booking, self._begin_generation = booking, begin_generation
        self._begins = begins
        self._arguments = Arguments(transformer)

    def __call__(self, inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What stands in the place of a call; see `core.patching.Around`."""
        context = self._listener.current()  # (each thread has its own)
        with self._state.call() as nested:
            if nested:
                return inner(*args, **kwargs)
            watch = Stopwatch.at((*args, *kwargs.values()))
            prepares = self._adapter.prepares
            if prepares is not None and prepares(self._arguments.named(args, kwargs)):
                return inner(*args, **kwargs)
            try:
                self._prepare(inner, args, kwargs)
                return self._passed(inner, args, kwargs, context, watch)
            except DitaccelError as error:
                self._booking.journal.refused = str(error)
                raise

    def _passed(
        self,
        inner: Inner,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: NamedContext | None,
        watch: Stopwatch,
    ) -> Any:
        name, seen = self._name, self._seen(args, kwargs)
        cache, attention = self._methods.caches.get(name), self._methods.attention.get(name)
        carried = self._methods.calls.get(name)
        if needs_gradients(self._transformer, seen.samples):
            self._booking.lone(name, Lone.GRADIENTS)
            return inner(*args, **kwargs)
        loop, step = self._observe(seen, context)
        if step.lone is not None:
            self._booking.lone(name, step.lone, step)
            self._state.clear(name)
            return inner(*args, **kwargs)
        call, output = None, None
        try:
            if attention is not None:
                attention.begin(step, seen.samples[0], seen.conditioned, seen.named)
            if cache is not None:
                # calls with other words are of another kind: a first one may fill a cache of keys
                # and values, which the others read instead of computing its tokens
                kind = tuple((k, v) for k, v in seen.named.items() if isinstance(v, str))
                call = cache.begin(step, seen.samples, seen.wants_dict, kind, seen.named)
                call.given = tuple(seen.named.values())
                output = cache.replayed(call)  # None unless nothing of the transformer must run
            if output is None:
                computed = TransformerCall(step, inner, args, kwargs, seen.named)
                output = computed.dense() if carried is None else carried.run(computed)
            if cache is not None and call is not None:
                output = cache.finish(call, output)
            if carried is not None:
                carried.finish(step)
            if attention is not None:
                missed = attention.finish()
                if call is None or not call.forecasting:
                    self._front.say_missed(missed)
        except BaseException:
            loop.forget()
            raise
        self._book(step, call, loop)
        self._booking.journal.time(watch)
        return output

    def _prepare(self, inner: Inner, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Meet what was put on the transformer since the last call, and learn an unknown one."""
        methods, name = self._methods, self._name
        self._ledger.reinstall()
        self._front.look(methods.caches.get(name), methods.attention.get(name), kwargs)
        if name in methods.unlearnt:
            call = (inner, args, kwargs)
            methods.learn(name, self._transformer, self._adapter, self._front, call)
        if name in methods.caches:
            methods.caches[name].check_compiled()

    def _seen(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Seen:
        adapter, named = self._adapter, self._arguments.named(args, kwargs)
        for key in (adapter.timestep, adapter.sample):
            if named.get(key) is None:
                raise UsageError(f"{self._name} was called without {key!r}; the tracker needs it")
        first = named[adapter.sample]
        second = named.get(adapter.second_stream or "")  # (a video may come without its sound)
        given = [first] if second is None else [first, second]
        return _Seen(
            timestep=adapter.timestep_in(named),
            samples=[as_tensor(sample) for sample in given],
            conditioned=has_conditions(first),
            named=named,
            wants_dict=named.get("return_dict", True),
        )

    def _observe(self, seen: _Seen, context: NamedContext | None) -> tuple[Loop, DenoisingStep]:
        """Find the loop of a call and the call's place in it, with the loop's state at hand."""
        adapter = self._adapter
        loop, caller = self._loops.find(self._transformer, seen.timestep)
        self._state.enter(loop)
        try:
            traits = self._loops.conditions.traits(seen.named, adapter.samples)
            step = loop.tracker.observe(
                self._name,
                seen.timestep,
                context,
                adapter.preconditioned,
                adapter.is_converted(self._transformer),
                traits,
                caller.scheduler,
                caller.step_options,
            )
            if step.generation != loop.generation:
                self._begin_generation(step, loop)
                if self._begins is not None:
                    self._begins(step, seen.samples[0])
            if loop.active != self._name and not adapter.side_by_side:
                # Wan 2.2 has moved on to its other transformer for good
                self._state.clear(loop.active)
                loop.active = self._name
        except BaseException:
            loop.forget()
            raise
        loop.watch(step, caller.mark)
        return loop, step

    def _book(self, step: DenoisingStep, call: Any, loop: Loop) -> None:
        caches = self._methods.caches
        if call is None:
            self._booking.computed(self._name, step)
            return
        self._booking.decided(self._name, step, call, caches[self._name], loop)
        self._booking.memory(caches.values())
