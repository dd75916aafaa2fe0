"""The denoising loops of one session: each has its own tracker and its own state.

A loop belongs to whoever runs it (`callers.py`): a pipeline's call, a scheduler in a loop by hand,
or the frame of a loop that has none. Its state goes as soon as it is over: at its last step, when
the iterator over its timesteps is gone (so before the VAE decodes, also after an interrupt, an
exception, or a loop whose length is not known), when its frame is gone, or when another loop begins
and it is not on the stack any more.
"""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .callers import Caller, Callers, Mark, loop_variable, on_stack
from .conditions import Conditions
from .leftover import Leftover
from .timesteps import level_of
from .tracker import DenoisingStep, DenoisingTracker, Lone

Memory = dict[str, Any]

LONE_LINES = {
    Lone.GRADIENTS: "gradients may be wanted of its calls (training?), so they are computed in "
    "full and nothing is remembered of them; for generations use torch.no_grad()",
    Lone.MIXED: "the samples of a batch are at different timesteps (training?): such calls are "
    "computed in full",
    Lone.WANDERING: "timesteps come in no order that a denoising loop has (training?): such calls "
    "are computed in full",
    Lone.STANDING: "many calls came at one timestep, and no scheduler is in sight: they are "
    "computed in full until the timestep changes",
}


class Loop:
    """One denoising loop after another of one owner.

    Args:
        generations: gives numbers to generations.
        forget: frees what the methods keep for this loop.

    Attributes:
        tracker: places its calls.
        memories: what each method keeps between its calls, while another loop runs.
        generation: number of the generation that has begun; -1 for none.
        reasons: what was decided in it.
        left: what its forecasts have left in the latents.
        active: component name of the transformer that was called last.
    """

    def __init__(
        self, pipe: Any, generations: Callable[[], int], forget: Callable[[Loop], None]
    ) -> None:
        self.tracker = DenoisingTracker(pipe, generations)
        self.memories: dict[Any, Memory] = {}
        self.generation = -1
        self.reasons: Counter[str] = Counter()
        self.left = Leftover()
        self.active = ""
        self.thread = 0
        self._free = forget
        self._first: Any = None
        self._watched = -1
        self._guards: list[Any] = []

    def forget(self) -> None:
        """Free all state; the next call begins a new generation."""
        self.tracker.reset()
        self._free(self)
        self._first = None

    def ends_with(self, witness: Any, generation: int | None = None) -> None:
        """Free the state when an object dies, if it is still that of a given generation."""
        this = weakref.ref(self)

        def over(reference: Any) -> None:
            loop = this()
            if loop is not None and reference in loop._guards:
                loop._guards.remove(reference)
                if generation in (None, loop.generation):
                    loop.forget()

        self._guards = [g for g in self._guards if g() is not None]
        self._guards.append(weakref.ref(witness, over))

    def watch(self, step: DenoisingStep, mark: Mark) -> None:
        """See how long the loop over timesteps lives: its first one is held until it is over."""
        if step.index == 0 and self._watched != step.generation:
            now = loop_variable(mark)
            self._first = None if now is None else weakref.ref(now)
            self._watched = step.generation
        elif step.index == 1 and self._first is not None:
            first, self._first = self._first(), None
            if first is not None and loop_variable(mark) is not first:
                # (it is not the loop's variable any more, and lives: the iterator has it)
                self.ends_with(first, step.generation)


class _ByHand:
    """A loop by hand, known by the frames of its calls, and its scheduler if one is in sight."""

    def __init__(self, loop: Loop, caller: Caller) -> None:
        self.loop = loop
        self.scheduler = caller.scheduler and weakref.ref(caller.scheduler)
        self.guess = weakref.ref(caller.mark)
        self.stepper: Any = None
        self.before: tuple[Any, ...] = ()
        self.see(caller)

    @property
    def anchor(self) -> Mark | None:
        """The mark of the frame that runs it."""
        found: Mark | None = (self.stepper or self.guess)()
        return found

    def see(self, caller: Caller) -> None:
        self.chain = tuple(weakref.ref(m) for m in caller.chain)

    def has(self, scheduler: Any) -> bool:
        """Whether it is a loop with this scheduler in sight (None: with none)."""
        own = self.scheduler and self.scheduler()
        return own is scheduler and (scheduler is not None or self.scheduler is None)

    def common(self, chain: tuple[Any, ...], caller: Caller) -> Mark | None:
        """The innermost frame that a call came through, and another one."""
        alive = {id(m) for m in (ref() for ref in chain) if m is not None}
        return next((m for m in caller.chain if id(m) in alive), None)


class Loops:
    """Finds the loop of each transformer call of a session.

    Args:
        pipe: the accelerated pipeline, whose scheduler counts where there is none in sight.
        forget: frees what the methods keep for a loop.
        scheduler: that loops by hand follow, whatever else is in sight of them; None for the one in
            sight.
    """

    def __init__(self, pipe: Any, forget: Callable[[Loop], None], scheduler: Any = None) -> None:
        self.pipe = weakref.ref(pipe) if pipe is not None else lambda: None
        self.next_generation = itertools.count().__next__
        self.conditions = Conditions()
        self._forget = forget
        self._given = () if scheduler is None else (scheduler,)
        self._callers = Callers()
        self._calls: dict[int, tuple[Any, Loop]] = {}
        self._by_hand: dict[int, list[_ByHand]] = {}

    def find(self, transformer: nn.Module, timestep: Any) -> tuple[Loop, Caller]:
        """The loop that a transformer call belongs to, and who calls."""
        caller = self._callers.find(transformer)
        if caller.pipeline is not None:
            known = self._calls.get(id(caller.mark))
            if known is not None and known[0]() is caller.mark:
                return known[1], caller
            loop = self._begun(caller, caller.pipeline)
            self._calls[id(caller.mark)] = weakref.ref(caller.mark), loop
            loop.ends_with(caller.mark)
            return loop, caller
        caller.schedulers = self._given or caller.schedulers
        if len(caller.schedulers) > 1:
            caller.choose(level_of(timestep))
        return self._by_hand_of(caller, timestep), caller

    def _begun(self, caller: Caller, pipe: Any) -> Loop:
        """A new loop; those of this thread that cannot go on any more are freed."""

        def gone(held: Any, loop: Loop) -> bool:
            mark = held()
            if mark is None or loop.thread != caller.thread:
                return mark is None
            return not mark.suspends and not on_stack(mark)

        for key, (held, loop) in list(self._calls.items()):
            if gone(held, loop):
                del self._calls[key]
                loop.forget()
        made = Loop(pipe, self.next_generation, self._forget)
        made.thread = caller.thread
        return made

    def _by_hand_of(self, caller: Caller, timestep: Any) -> Loop:
        runs = self._by_hand.setdefault(caller.thread, [])
        places = {id(m): i for i, m in enumerate(caller.chain)}
        alike = [run for run in runs if run.has(caller.scheduler)]
        inside = [r for r in alike if id(r.anchor) in places]
        run = min(inside, key=lambda r: places[id(r.anchor)], default=None)
        if run is None:
            run = next((r for r in reversed(alike) if self._goes_on(r, caller, timestep)), None)
        if run is not None:
            self._advance(run, caller, timestep)
            return run.loop
        before: tuple[Any, ...] = ()
        for over in [r for r in runs if self._is_over(r)]:
            if over.stepper is None:
                before = (*before, *over.chain, *over.before)
            runs.remove(over)
            over.loop.forget()
        run = _ByHand(self._begun(caller, self.pipe()), caller)
        run.before = before[:256]
        runs.append(run)
        return run.loop

    def _is_over(self, run: _ByHand) -> bool:
        mark = run.anchor
        return mark is None or (not mark.suspends and not on_stack(mark))

    def _goes_on(self, run: _ByHand, caller: Caller, timestep: Any) -> bool:
        """Whether a loop whose frame is gone goes on: its frame was a helper's."""
        last = run.loop.tracker.last
        if run.stepper is not None or last is None or not self._is_over(run):
            return False
        # at the same timestep it has begun again, unless a scheduler says that it has not
        onward = level_of(timestep) != last or run.loop.tracker.driven_by(caller.scheduler)
        return onward and run.common(run.chain, caller) is not None

    def _advance(self, run: _ByHand, caller: Caller, timestep: Any) -> None:
        """See which frame runs the loop: the one that stays when a step is taken."""
        if run.stepper is None:
            last = run.loop.tracker.last
            if last is not None and level_of(timestep) != last:
                common = run.common(run.chain, caller)
                if common is not None:
                    run.stepper = weakref.ref(common)
                    run.loop.ends_with(common)
                    if any(ref() is common for ref in run.before):
                        # calls of this very step were taken for loops that had broken off
                        run.loop.forget()
                    run.before = ()
        run.see(caller)

    def all(self) -> list[Loop]:
        """All loops that there are."""
        by_hand = [run.loop for runs in self._by_hand.values() for run in runs]
        return [*(loop for _, loop in self._calls.values()), *by_hand]

    def clear(self) -> None:
        """Forget all loops."""
        for loop in self.all():
            loop.forget()
        self._calls.clear()
        self._by_hand.clear()


def needs_gradients(transformer: nn.Module, samples: list[torch.Tensor]) -> bool:
    """Whether gradients may be wanted of a call."""
    if not torch.is_grad_enabled():
        return False
    if any(sample.requires_grad for sample in samples):
        return True
    return any(parameter.requires_grad for parameter in transformer.parameters())
