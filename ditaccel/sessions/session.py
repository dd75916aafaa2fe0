"""One accelerated pipeline: loops, patches, methods and the report, tied together.

A session stands in front of transformers, whoever calls them. Each denoising loop has its own
tracker and its own state (`core/denoising/loops.py`); what the methods keep is exchanged when
another loop's call comes. One transformer call runs at a time: threads wait for each other.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..attention.engine.planner import Planner
from ..attention.engine.runtime import AttentionRuntime
from ..caching.engine.hooks import BlockCache
from ..calls.engine.method import CallMethod
from ..config import AccelerationConfig, to_dict
from ..config.completion import completed
from ..core._compat import ContextListener
from ..core.denoising.loops import Loop, Loops
from ..core.denoising.state import LoopState
from ..core.denoising.tracker import DenoisingStep
from ..core.patching import PatchLedger, patch_of, unwrapped
from ..core.transformers import family_of
from ..errors import UsageError
from ..pipelines import FamilyAdapter
from ..reports.drift import Watched
from ..reports.journal import Journal
from ..reports.report import Report
from .booking import Booking
from .corridor import Corridor
from .front import Front
from .methods import Methods
from .step_count import StepCount
from .tuned_for import TunedFor


class Session:
    """Everything that `accelerate` put on one pipeline (or bare transformer).

    Args:
        pipe: the pipeline, or None for a bare transformer.
        transformers: component name -> transformer.
        config: what to do.
        planner: of the attention, in place of a method's (to watch it).
        adapter: of all transformers; by default that of each one's family.
        scheduler: that the loops of a bare transformer follow, None for the one in sight.

    Attributes:
        config: what is done, options of the family filled in.
        transformers: as given.
        journal: what has happened so far.
        is_on: whether the methods are on.
    """

    def __init__(
        self,
        pipe: Any,
        transformers: dict[str, nn.Module],
        config: AccelerationConfig,
        planner: Planner | None = None,
        adapter: FamilyAdapter | None = None,
        scheduler: Any = None,
    ) -> None:
        self.transformers = transformers
        self._adapters = {name: adapter or family_of(part) for name, part in transformers.items()}
        family = next(iter(self._adapters.values()))
        self.config, filled = completed(config, family)
        self.journal = Journal(
            family.name,
            " & ".join(method.method for method in config.methods),
            to_dict(self.config),
            filled=filled,
        )
        self._pipe = weakref.ref(pipe) if pipe is not None else lambda: None
        self._ledger = PatchLedger(owner=self)
        self._fronts: dict[str, Front] = {}
        cache = self.config.cache
        self._booking = Booking(self.journal, "" if cache is None else cache.method)
        if config.tuned is not None:
            self.journal.watched = Watched()
        self._tuned_for = TunedFor(config, family.name, self.journal, self._booking.warn)
        self._methods = Methods(
            self.config, planner, self._ledger, self.journal, self._booking.warn
        )
        self._state = LoopState(self.caches, self.attention, self.calls)
        self._loops = Loops(pipe, self._state.free, scheduler)
        self.is_on = False
        self.put_on()

    @property
    def caches(self) -> dict[str, BlockCache]:
        """Component name -> what forecasts it."""
        return self._methods.caches

    @property
    def attention(self) -> dict[str, AttentionRuntime]:
        """Component name -> what replaces its attention."""
        return self._methods.attention

    @property
    def calls(self) -> dict[str, CallMethod]:
        """Component name -> what carries its calls out."""
        return self._methods.calls

    def put_on(self) -> None:
        """Patch the transformers, first or once more after `restore`: the journal goes on."""
        try:
            self._tuned_for.look(self._pipe(), self.transformers)
            for name, transformer in self.transformers.items():
                self._stand_before(name, transformer)
            if self.config.steps != "keep":
                self._choose_steps()
        except BaseException:
            self._ledger.undo()
            raise
        self.is_on = True

    def _choose_steps(self) -> None:
        pipe = self._pipe()
        if pipe is None:
            raise UsageError(
                f"steps={self.config.steps!r} is for a pipeline: a loop around a bare transformer "
                "chooses how many steps it makes itself"
            )
        StepCount(pipe, self.config, self._booking.steps_chosen).stand(pipe, self._ledger)

    def _stand_before(self, name: str, transformer: nn.Module) -> None:
        inner, adapter, methods = unwrapped(transformer), self._adapters[name], self._methods
        caches, outside = self.config.cache is not None, methods.outside
        front = Front(name, transformer, self._pipe(), caches, outside, self._booking.warn)
        self._fronts[name] = front
        methods.note_ranks(name, inner)
        listener = ContextListener(inner)
        self._ledger.on_undo(listener.detach)
        corridor = Corridor(
            name,
            inner,
            adapter,
            front,
            listener,
            ledger=self._ledger,
            methods=methods,
            loops=self._loops,
            state=self._state,
            booking=self._booking,
            begin_generation=self._begin_generation,
            begins=None if self.journal.watched is None else self._tuned_for.begins,
        )
        front.stand(corridor, self._ledger)
        methods.install(name, inner, adapter, front)

    def _begin_generation(self, step: DenoisingStep, loop: Loop) -> None:
        loop.generation = step.generation
        self._booking.begin_generation(loop)
        for name, transformer in self.transformers.items():
            # it may have been split or cached by somebody else since `accelerate`
            self._methods.note_ranks(name, transformer)
            self._fronts[name].neighbours.refresh()
            self._fronts[name].meet_other_cache(self.attention.get(name))
        self._state.clear()
        for attention in self.attention.values():
            attention.begin_generation(step)
        for carried in self.calls.values():
            carried.begin_generation(step)
        if self.caches:
            self._booking.begin_cache(step, next(iter(self.caches.values())).policy)

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
