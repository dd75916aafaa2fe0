"""DenoisingTracker: which generation, step and branch does this transformer call belong to?

Never by call parity: a guidance interval, an interrupt or an exception breaks it. A call is placed
by, in this order, the cache context that the pipeline names, the timestep argument, and the
scheduler's own position. Nothing is patched for that: the scheduler of whoever calls (`callers.py`)
is looked at on every call, so that one replaced after `accelerate` is followed too. Branches
without a name are told apart by what they are conditioned on (`branches.py`).
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch

from .._compat import NamedContext
from .branches import Branches
from .conditions import Traits
from .schedule import Known, Schedule, position

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
    """Where a transformer call stands.

    Attributes:
        generation: number of the denoising loop since `accelerate`, from 0.
        index: scheduler step within the loop, from 0.
        branch: guidance branch: the pipeline's name for it, else `call0`, `call1`, …
        timestep: timestep as the transformer got it, the largest where tokens have their own.
        sigma: noise level, None where the scheduler has none.
        total: steps of the loop, None where it cannot be known (a bare transformer).
        sigma_next: noise level that the step leads to, where the scheduler has one and takes its
            steps in one stage (not Heun's).
        additive: whether the scheduler's step adds `(sigma_next - sigma) * output` to the latents,
            up to a scale of the latents, and keeps no outputs of earlier steps.
        known: what is known of the schedule.
        window: what tells calls of one guidance branch apart (windows, tiles); branches of the same
            window belong together.
        lone: why this is no call of a denoising loop, so that nothing may be forecast; None where
            it is one.
        latent_scale: size of the latents to which that scale applies, by what the transformer is
            given: 1 for flow matching, sqrt(1 + sigma^2) for noise prediction.
    """

    generation: int
    index: int
    branch: str
    timestep: float
    sigma: float | None = None
    total: int | None = None
    sigma_next: float | None = None
    additive: bool = False
    latent_scale: float = 1.0
    known: Known = Known.FOLLOWED
    window: Hashable = None
    lone: Lone | None = None

    @property
    def feedback(self) -> float:
        """Change of the output per change of the latents, for data of unit variance.

        Noise prediction: `sigma / (1 + sigma^2)`, which the long gaps at high noise feel. Flow
        matching: at most one, and gaps are short against sigma's range, so that 0 serves.
        """
        if self.sigma is None or self.latent_scale == 1.0:
            return 0.0
        return self.sigma / (1.0 + self.sigma**2)

    def preconditioned(self) -> DenoisingStep:
        """This step where latents are mixed into the output before the scheduler gets it.

        EDM (arXiv 2206.00364) and its kin divide an output's part in the latents by about
        `sqrt(1 + sigma^2)`, on top of how latents grow.
        """
        scale = 1.0 if self.sigma is None else 1.0 + self.sigma**2
        return replace(self, additive=False, latent_scale=scale)

    @property
    def is_last(self) -> bool:
        """Whether this is known to be the last step."""
        return self.total is not None and self.index >= self.total - 1


@dataclass(frozen=True)
class _Reading:
    """A timestep argument, looked at once.

    Attributes:
        level: the step's timestep. Tokens that are given have a small one or 0 (Wan 2.2 5B), so
            it is the largest.
        progress: what tells steps apart: the mean, which moves on although some frames still wait
            at the largest timestep (diffusion forcing).
        each: timesteps of the tokens or frames of one sample, None where they have none of their
            own.
        moved: the farthest that one of them is from the call before.
        turned_back: whether one of them went back.
        mixed: whether samples of the batch are at different timesteps.
    """

    level: float
    progress: float
    each: torch.Tensor | None = None
    moved: float = 0.0
    turned_back: bool = False
    mixed: bool = False


def _read(timestep: Any, before: torch.Tensor | None, direction: int) -> _Reading:
    """Read a timestep argument; waits for the device once.

    Args:
        timestep: a number, or a tensor `()`, `(B,)` or `(B, …)`.
        before: `each` of the call before.
        direction: 1 or -1 where timesteps have risen or fallen so far, else 0.
    """
    if not isinstance(timestep, torch.Tensor):
        return _Reading(float(timestep), float(timestep))
    if timestep.ndim < 2:
        values = timestep.detach().float()
        if values.numel() < 2:
            level = float(values)
            return _Reading(level, level)
        least, level = torch.stack(torch.aminmax(values)).tolist()
        return _Reading(level, level, mixed=least != level)
    each = timestep.detach()[0].flatten().float().clone()
    change = torch.zeros_like(each)
    if before is not None and before.shape == each.shape:
        change = each - before
    # more than what schedules lose by rounding to whole timesteps
    back = (change * -direction > 5e-3 * each.abs().max()).any().float()
    figures = [each.max(), each.min(), each.mean(), change.abs().max(), back]
    level, least, mean, moved, turned = torch.stack(figures).tolist()
    return _Reading(level, level if level == least else mean, each, moved, turned > 0)


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
        self._forget()

    def _forget(self) -> None:
        self._schedule = Schedule()
        self._branches = Branches()
        self._position: int | None = None
        self._last: float | None = None
        self._level = 0.0
        self._each: torch.Tensor | None = None
        self._direction = 0
        self._index = -1
        self._fresh = True

    def reset(self) -> None:
        """Forget the loop (after an exception): the next call begins a new generation."""
        self._forget()

    @property
    def last(self) -> float | None:
        """The timestep of the last call, None before the first one."""
        return self._last

    def driven_by(self, scheduler: Any) -> bool:
        """Whether the loop follows a scheduler that was set anew for it."""
        schedule = self._schedule
        same = schedule.timesteps is getattr(scheduler, "timesteps", None)
        return same and schedule.known is Known.FOLLOWED and schedule.anew

    def observe(
        self,
        transformer: str,
        timestep: Any,
        context: NamedContext | None = None,
        preconditioned: bool = False,
        traits: Traits | None = None,
        scheduler: Any = None,
    ) -> DenoisingStep:
        """Place one transformer call.

        Args:
            transformer: name of the component that is called (`transformer`, `transformer_2`).
            timestep: the timestep argument: a number or a tensor of any shape.
            context: the cache context that the pipeline set, if any.
            preconditioned: `FamilyAdapter.preconditioned`.
            traits: what tells the call from others of its step; without them, unnamed calls count.
            scheduler: of the pipeline that calls; by default that of `pipe`.
        """
        reading = _read(timestep, self._each, self._direction)
        now, name = reading.progress, None if context is None else context.name
        if scheduler is None:
            # It outlives a pipeline that was taken apart (`Pipe(**p.components)`).
            scheduler = getattr(self._pipe(), "scheduler", self._scheduler)
        self._scheduler = scheduler
        where = position(scheduler)
        if traits is not None and where is not None:
            traits = replace(traits, sample=None)  # the scheduler tells steps apart
        if reading.turned_back or self._begins_generation(now, scheduler):
            self._begin_generation(scheduler, reading)
        if self._begins_step(now, where) or self._branches.is_next_step(transformer, name, traits):
            self._begin_step(reading)
        self._last, self._position = now, where
        self._level, self._each = reading.level, reading.each
        place = self._branches.place(transformer, name, traits)
        schedule = self._schedule
        sigma = schedule.sigma(self._index)
        if context is not None and context.sigma is not None:
            sigma = context.sigma
        step = DenoisingStep(
            generation=self.generation,
            index=self._index,
            branch=place.branch,
            timestep=reading.level,
            sigma=sigma,
            total=self._total(),
            sigma_next=schedule.sigma(self._index + 1) if schedule.single_stage else None,
            additive=schedule.additive,
            latent_scale=1.0 if schedule.flow or sigma is None else math.hypot(1.0, sigma),
            known=schedule.known,
            window=place.window,
            lone=self._lone(reading),
        )
        # noise levels of flow matching end at 1
        beyond = preconditioned and schedule.highest_sigma > 1.0
        return step.preconditioned() if beyond else step

    def _total(self) -> int | None:
        total = self._schedule.total
        # a loop that begins at the schedule's end may go back through it
        return None if total == 1 and not self._schedule.sure and not self._index else total

    def _lone(self, reading: _Reading) -> Lone | None:
        if reading.mixed:
            return Lone.MIXED
        if self._schedule.known is Known.FOLLOWED:
            return None
        if self._strikes >= _STRIKES:
            return Lone.WANDERING
        standing = self._index == 0 and self._branches.calls > _MOST_CALLS
        return Lone.STANDING if standing else None

    def _begins_generation(self, now: float, scheduler: Any) -> bool:
        if self._fresh or self._last is None:
            return True
        # `set_timesteps` makes a new tensor; holding the old one keeps its identity unique.
        timesteps = getattr(scheduler, "timesteps", None)
        if timesteps is not self._schedule.timesteps:
            # Some loops make the same timesteps anew at each step.
            onward = now != self._last and not self._goes_back(now)
            return not (onward and self._schedule.continues(scheduler, self._index + 1))
        return self._goes_back(now)

    def _goes_back(self, now: float) -> bool:
        if self._last is None or (now - self._last) * self._direction >= 0:
            return False
        return not self._schedule.runs_reversed(self._index + 1, now)

    def _begin_generation(self, scheduler: Any, reading: _Reading) -> None:
        alike = abs(reading.level - self._start) <= 0.01 * abs(self._start)
        low = self._direction > 0 or abs(self._last or 0.0) <= 0.3 * abs(self._start)
        if self.generation < 0 or alike or (low and self._index + 1 >= _WHOLE):
            self._strikes = max(self._strikes - 1, 0)
        else:
            self._strikes += 1
        self._start = reading.level
        self._forget()
        self._fresh = False
        self.generation = self._next()
        self._schedule = Schedule(scheduler, reading.level)
        self._direction = self._schedule.direction

    def _begins_step(self, now: float, where: int | None) -> bool:
        if self._last is None or now != self._last:
            return True
        # Heun-type schedulers visit a timestep twice; `scheduler.step` ran between the visits.
        return where is not None and where != self._position

    def _begin_step(self, reading: _Reading) -> None:
        now, schedule = reading.progress, self._schedule
        if self._last is not None and now != self._last:
            if (now - self._last) * self._direction < 0 or not self._direction:
                self._direction = 1 if now > self._last else -1
            if 2 * abs(reading.level - self._level) < reading.moved:
                # Some frames wait: the schedule is that of one frame, and not of this loop.
                schedule.lose()
        self._index += 1
        if not schedule.agrees(self._index, reading.level):
            schedule.lose()
        self._branches.begin_step()


def level_of(timestep: Any) -> float:
    """What tells steps apart in a timestep argument."""
    return _read(timestep, None, 0).progress
