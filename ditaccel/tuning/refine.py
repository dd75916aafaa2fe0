"""Closed-loop refinement: masks one change apart are run, and the better one is kept.

What the dynamic programme chooses is cheapest by an estimate that no forecast has influenced; a
forecast changes what the transformer sees from there on, and only running a mask shows what that
comes to. Hill climbing takes every change that gains. Simulated annealing also takes some that
lose, fewer and fewer of them, and so leaves a mask that no single change improves. `Tuner` takes
the winner only where generations that the search has not seen bear it out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from random import Random

from ..config import require
from ..config.option_types import checked
from .masks import Mask, Moves
from .trials import Trial, Trials

# What a change must gain, in dB: less is no more than rounding.
_GAIN = 0.01
# Temperatures of annealing, in dB: of the first trial and of the last.
_HOT, _COLD = 1.0, 0.02


@checked()
@dataclass(frozen=True, kw_only=True)
class Refine:
    """How `tune` refines the best plan.

    Attributes:
        trials: plans to try, each on up to all prompt-seed pairs; 0 for none.
        anneal: accept worse plans on the way (simulated annealing).
        minutes: counted from the beginning of `tune`; after so many no further plan is tried.
        resume: a file that remembers what was run: after a kill the same call continues.

    Raises:
        ConfigError: a number is out of range.
    """

    trials: int = 100
    anneal: bool = False
    minutes: float | None = None
    resume: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        require(self.trials >= 0, f"refine is {self.trials}; it must be 0 or more")
        require(
            self.minutes is None or self.minutes > 0,
            f"minutes is {self.minutes}; it must be more than 0",
        )


@dataclass(frozen=True)
class Goal:
    """What a better mask is.

    Attributes:
        calls: transformer calls that may be computed, for the best level; None to reach `psnr`.
        psnr: level to reach with as few calls as possible, in dB.
    """

    calls: int | None = None
    psnr: float = 0.0

    def kinds(self, mask: Mask, level: float) -> tuple[str, ...]:
        """Changes to propose for a mask of so many dB, each as often as it is named."""
        same = ("move", "move", "move", "order", *(() if mask.others is None else ("trade",)))
        if self.calls is None:
            more = "drop" if level >= self.psnr else "add"
            return (*same, *(more,) * len(same))
        return (*same, "add") if mask.calls < self.calls else same

    def allows(self, mask: Mask) -> bool:
        """Whether a mask computes few enough calls."""
        return self.calls is None or mask.calls <= self.calls

    def needed(self, mask: Mask, best: Mask, level: float) -> float:
        """Level above which a mask is better than the best so far, in dB."""
        if self.calls is not None or level < self.psnr or mask.calls == best.calls:
            return level + _GAIN
        return self.psnr if mask.calls < best.calls else math.inf


@dataclass
class Refinement:
    """One search from one mask.

    Args:
        trials: runs masks.
        moves: changes of a mask.
        goal: what is better.
        random: draws.
        told: called after every trial with the best level so far and the calls of its mask.
        over: asked before every trial whether the time is up.
    """

    trials: Trials
    moves: Moves
    goal: Goal
    random: Random
    told: Callable[[float, int], None] = lambda level, calls: None
    over: Callable[[], bool] = lambda: False

    def climb(self, start: Mask, count: int) -> Trial:
        """Try `count` masks, each one change away from the best so far; return the best."""
        best = self.trials.tried(start)
        for _ in range(count):
            mask = None if self.over() else self._proposed(best)
            if mask is None:
                break
            needed = self.goal.needed(mask, best.mask, self.trials.level(best))
            trial = self.trials.tried(mask, self._to_beat(best, needed))
            if trial.complete and self._is_better(trial, best):
                best = trial
            self.told(self.trials.level(best), best.mask.calls)
        return best

    def anneal(self, start: Mask, count: int) -> Trial:
        """Walk over three quarters of `count` masks, worse ones too; then climb from the best."""
        here = best = self.trials.tried(start)
        walk = count * 3 // 4
        for i in range(walk):
            mask = None if self.over() else self._proposed(here)
            if mask is None:
                break
            heat = _HOT * (_COLD / _HOT) ** (i / max(walk - 1, 1))
            # Drawn before the run, so that a mask below it can be given up early.
            allowed = heat * -math.log(1.0 - self.random.random())
            level = self.trials.level(here)
            # how far below the goal one may go is the only thing that heat changes
            needed = self.goal.needed(mask, here.mask, level) - allowed
            trial = self.trials.tried(mask, self._to_beat(here, needed))
            if trial.complete and self.trials.level(trial) >= needed:
                here = trial
                if self._is_better(here, best):
                    best = here
            self.told(self.trials.level(best), best.mask.calls)
        return self.climb(best.mask, count - walk)

    def _is_better(self, trial: Trial, than: Trial) -> bool:
        level, best = self.trials.level(trial), self.trials.level(than)
        if level < self.goal.needed(trial.mask, than.mask, best):
            return False
        # Fewer calls that reach the goal are a gain whatever the level; else the gain must be more
        # than the scatter of the samples explains, or the winner of many is one by chance.
        return trial.mask.calls < than.mask.calls or self.trials.surpasses(trial, than)

    def _proposed(self, best: Trial) -> Mask | None:
        kinds = self.goal.kinds(best.mask, self.trials.level(best))

        def unfit(mask: Mask) -> bool:
            return mask in self.trials or not self.goal.allows(mask)

        return self.moves.proposed(best.mask, kinds, self.random, unfit)

    def _to_beat(self, best: Trial, needed: float) -> Sequence[float]:
        """Levels per sample that have the level that is needed."""
        shift = needed - self.trials.level(best)
        return [level + shift for level in best.levels]
