"""DenoisingTracker: which generation, step and branch does this transformer call belong to?

Never by call parity: a guidance interval, an interrupt or an exception breaks it. A call is placed
by, in this order, the cache context that the pipeline names, the timestep argument, and the
scheduler's own position. Nothing is patched for that: the scheduler of whoever calls (`callers.py`)
is looked at on every call, so that one replaced after `accelerate` is followed too. Branches
without a name are told apart by what they are conditioned on (`branches.py`).
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import pairwise
from typing import Any

from .._compat import NamedContext
from .branches import Branches, Place
from .conditions import Traits
from .experts import switch_of
from .response import Response
from .schedule import Known, Schedule
from .schedulers import position
from .timesteps import Reading, read

# Calls at one timestep, where nothing says that a loop will ever take a step.
_MOST_CALLS = 64
# Generations that broke off and were followed by one that begins elsewhere, of late.
_STRIKES = 2
# Steps of a loop that may be followed by another one that begins elsewhere (img2img, a refiner).
_WHOLE = 4


class Lone(Enum):
    """Why a transformer call is of no denoising loop: nothing of it is remembered or forecast.

    Attributes:
        GRADIENTS: gradients may be wanted of it.
        MIXED: each sample of the batch is at a timestep of its own.
        WANDERING: timesteps come in no order.
        STANDING: the timestep never changes.
    """

    GRADIENTS = "gradients are on"
    MIXED = "each sample has its own timestep"
    WANDERING = "timesteps come in no order"
    STANDING = "many calls at one timestep"


@dataclass(frozen=True)
class DenoisingStep:
    """Where in its loop a transformer call is.

    Attributes:
        generation: number of the denoising loop since `accelerate`, from 0.
        index: scheduler step within the loop, from 0.
        branch: guidance branch: the pipeline's name for it, else `call0`, `call1`, …
        timestep: timestep as the transformer got it, the largest where tokens have their own.
        sigma: noise level, None where the scheduler has none.
        total: steps of the loop, None where it cannot be known (a bare transformer).
        sigma_next: noise level that the step leads to, where the scheduler has one and takes its
            steps in one stage (not Heun's).
        known: what is known of the schedule.
        window: what tells calls of one guidance branch apart (windows, tiles); branches of the same
            window belong together.
        lone: why this is no call of a denoising loop, so that nothing may be forecast; None where
            it is one.
        schedule: of the loop; call number `index` of its response is this step's.
        first: step of the loop at which the part of the transformer that is called begins: 0, but
            for the second expert of Wan 2.2.
        end: step behind that part, as far as it is known beforehand.
    """

    generation: int
    index: int
    branch: str
    timestep: float
    sigma: float | None = None
    total: int | None = None
    sigma_next: float | None = None
    known: Known = Known.FOLLOWED
    window: Hashable = None
    lone: Lone | None = None
    schedule: Schedule | None = field(default=None, repr=False, compare=False)
    first: int = 0
    end: int | None = None

    @property
    def fraction(self) -> float:
        """Share of the loop that is done, 0 at the first step; 0 where unknown."""
        return self.index / self.total if self.total else 0.0

    @property
    def parts(self) -> tuple[range, ...]:
        """Steps of each transformer that makes a part of the loop; empty where one makes all."""
        last = self.total if self.end is None else self.end
        if self.total is None or last is None or (self.first == 0 and last == self.total):
            return ()
        bounds = [0, self.first, last, self.total]
        return tuple(range(a, b) for a, b in pairwise(bounds) if a < b)

    @property
    def response(self) -> Response | None:
        """`Schedule.response`: how the loop's latents answer to the outputs."""
        return None if self.schedule is None else self.schedule.response

    @property
    def tangent(self) -> Response | None:
        """`Schedule.tangent`: how the loop's latents answer to small changes of the outputs."""
        return None if self.schedule is None else self.schedule.tangent

    @property
    def flow(self) -> bool:
        """Whether noise levels run from 1 to 0, and the latents keep their size (flow matching)."""
        return self.schedule is not None and 0.0 < self.schedule.highest_sigma <= 1.0

    @property
    def log_snr(self) -> float | None:
        """`Schedule.log_snr`: logarithm of picture by noise in the latents."""
        return None if self.schedule is None else self.schedule.log_snr(self.index)

    @property
    def feedback(self) -> float:
        """`Schedule.feedback`: how an error in the latents moves the output."""
        return 0.0 if self.schedule is None else self.schedule.feedback(self.index)

    @property
    def stage(self) -> int:
        """Which call of a scheduler's step it is: 1 for the second stage of Heun's and its kin."""
        return 0 if self.schedule is None else self.index % self.schedule.stages

    @property
    def place(self) -> float:
        """Where among the steps its noise level is, counted in calls.

        The second stage of a Heun step is at the level of the next step; it is kept a little apart,
        for forecasts divide by distances.
        """
        ahead = self.schedule is not None and self.schedule.stands(self.index)
        return self.index + 0.9 * (self.stage > 0 and ahead)

    @property
    def is_last(self) -> bool:
        """Whether this is known to be the last step."""
        return self.total is not None and self.index >= self.total - 1


@dataclass
class _Course:
    """How far the present loop has come.

    Attributes:
        schedule: which it follows.
        branches: those of its steps.
        direction: 1 or -1 where timesteps have risen or fallen so far, else 0.
        index: of the present step, -1 before the first.
        position: of the scheduler at the last call.
        last: the timestep of the last call, None before the first.
        switch: step at which a second transformer takes over, None where that is not known.
        begun: transformer -> step of its first call.
    """

    schedule: Schedule = field(default_factory=Schedule)
    branches: Branches = field(default_factory=Branches)
    direction: int = 0
    index: int = -1
    position: int | None = None
    last: Reading | None = None
    switch: int | None = None
    begun: dict[str, int] = field(default_factory=dict)

    def part_of(self, transformer: str, total: int | None) -> tuple[int, int | None]:
        """First step of a transformer's part of the loop, and the step behind it if known."""
        first = self.begun.setdefault(transformer, self.index)
        switch = self.switch
        return first, switch if switch is not None and self.index < switch else total

    def goes_back(self, now: float) -> bool:
        """Whether a timestep lies before the last one, so that another loop begins."""
        if self.last is None or (now - self.last.progress) * self.direction >= 0:
            return False
        return not self.schedule.runs_reversed(self.index + 1, now)

    def begins_step(self, now: float, where: int | None) -> bool:
        """Whether a call is of another step than the last one, by timestep and position."""
        if self.last is None or now != self.last.progress:
            return True
        # Heun-type schedulers visit a timestep twice; `scheduler.step` ran between the visits.
        return where is not None and where != self.position

    def begin_step(self, reading: Reading) -> None:
        """Go on to the next step."""
        now, schedule, last = reading.progress, self.schedule, self.last
        if last is not None and now != last.progress:
            if (now - last.progress) * self.direction < 0 or not self.direction:
                self.direction = 1 if now > last.progress else -1
            if 2 * abs(reading.level - last.level) < reading.moved:
                # Some frames wait: the schedule is that of one frame, and not of this loop.
                schedule = schedule.lost()
        self.index += 1
        self.schedule = schedule.at(self.index, reading.level)
        self.branches.begin_step()


class DenoisingTracker:
    """Follows one denoising loop after the other; all transformers of a pipeline share a tracker.

    Args:
        pipe: whose scheduler counts where `observe` is given none; held weakly.
        generations: gives the next generation's number.
    """

    def __init__(self, pipe: Any = None, generations: Callable[[], int] | None = None) -> None:
        self._pipe = weakref.ref(pipe) if pipe is not None else lambda: None
        self._scheduler: Any = None
        self._next = generations or itertools.count().__next__
        self.generation = -1
        self._strikes = 0
        self._start = 0.0
        self._course = _Course()

    def reset(self) -> None:
        """Forget the loop (after an exception): the next call begins a new generation."""
        self._course = _Course()

    @property
    def last(self) -> float | None:
        """The timestep of the last call, None before the first one."""
        return None if self._course.last is None else self._course.last.progress

    def driven_by(self, scheduler: Any) -> bool:
        """Whether the loop follows a scheduler that was set for it."""
        schedule = self._course.schedule
        same = schedule.timesteps is getattr(scheduler, "timesteps", None)
        return same and schedule.known is Known.FOLLOWED and schedule.anew

    def observe(
        self,
        transformer: str,
        timestep: Any,
        context: NamedContext | None = None,
        preconditioned: bool = False,
        converted: bool = False,
        traits: Traits | None = None,
        scheduler: Any = None,
        step_options: Callable[[], Mapping[str, float]] = dict,
    ) -> DenoisingStep:
        """Place one transformer call.

        Args:
            transformer: name of the component that is called (`transformer`, `transformer_2`).
            timestep: the timestep argument: a number or a tensor of any shape.
            context: the cache context that the pipeline set, if any.
            preconditioned: `FamilyAdapter.preconditioned`.
            converted: `FamilyAdapter.converted`.
            traits: what tells the call from others of its step; without them, unnamed calls count.
            scheduler: of the pipeline that calls; by default that of `pipe`.
            step_options: gives the further arguments of its `step`, asked when a loop begins.
        """
        reading = read(timestep, self._course.last, self._course.direction)
        if scheduler is None:
            # It outlives a pipeline that was taken apart (`Pipe(**p.components)`).
            scheduler = getattr(self._pipe(), "scheduler", self._scheduler)
        self._scheduler = scheduler
        where = position(scheduler)
        if traits is not None and where is not None:
            traits = replace(traits, sample=None)  # the scheduler tells steps apart
        if reading.turned_back or self._begins_generation(reading.progress, scheduler):
            self._begin_generation(scheduler, reading, preconditioned, converted, step_options())
        name, course = None if context is None else context.name, self._course
        if course.begins_step(reading.progress, where) or course.branches.is_next_step(
            transformer, name, traits
        ):
            course.begin_step(reading)
        course.last, course.position = reading, where
        place = course.branches.place(transformer, name, traits)
        sigma = None if context is None else context.sigma
        return self._step(transformer, reading, place, sigma)

    def _step(
        self, transformer: str, reading: Reading, place: Place, sigma: float | None
    ) -> DenoisingStep:
        """Where the present call is; `sigma` is what the pipeline says, if it does."""
        index, schedule = self._course.index, self._course.schedule
        if sigma is None:
            sigma = schedule.sigma(index)
        total = self._total()
        first, end = self._course.part_of(transformer, total)
        return DenoisingStep(
            generation=self.generation,
            index=index,
            branch=place.branch,
            timestep=reading.level,
            sigma=sigma,
            total=total,
            sigma_next=schedule.sigma(index + 1) if schedule.stages == 1 else None,
            known=schedule.known,
            window=place.window,
            lone=self._lone(reading),
            schedule=schedule,
            first=first,
            end=end,
        )

    def _total(self) -> int | None:
        schedule, total = self._course.schedule, self._course.schedule.total
        # a loop that begins at the schedule's end may go back through it
        return None if total == 1 and not schedule.sure and not self._course.index else total

    def _lone(self, reading: Reading) -> Lone | None:
        course = self._course
        if reading.mixed:
            return Lone.MIXED
        if course.schedule.known is Known.FOLLOWED:
            return None
        if self._strikes >= _STRIKES:
            return Lone.WANDERING
        standing = course.index == 0 and course.branches.calls > _MOST_CALLS
        return Lone.STANDING if standing else None

    def _begins_generation(self, now: float, scheduler: Any) -> bool:
        course = self._course
        if course.last is None:
            return True
        # `set_timesteps` makes a new tensor; holding the old one keeps its identity unique.
        if getattr(scheduler, "timesteps", None) is course.schedule.timesteps:
            return course.goes_back(now)
        if now == course.last.progress or course.goes_back(now):
            return True
        # Some loops set the same timesteps again at each step.
        again = course.schedule.made_again(scheduler, course.index + 1)
        if again is None:
            return True
        course.schedule = again
        return False

    def _begin_generation(
        self,
        scheduler: Any,
        reading: Reading,
        mixes: bool,
        converted: bool,
        options: Mapping[str, float],
    ) -> None:
        course = self._course
        alike = abs(reading.level - self._start) <= 0.01 * abs(self._start)
        low = course.direction > 0 or abs(self.last or 0.0) <= 0.3 * abs(self._start)
        if self.generation < 0 or alike or (low and course.index + 1 >= _WHOLE):
            self._strikes = max(self._strikes - 1, 0)
        else:
            self._strikes += 1
        self._start = reading.level
        self.generation = self._next()
        schedule = Schedule.of(scheduler, reading.level, mixes, options)
        schedule = replace(schedule, converted=converted)
        switch = switch_of(self._pipe(), schedule.values[schedule.offset or 0 :])
        self._course = _Course(schedule, direction=schedule.direction, switch=switch)
