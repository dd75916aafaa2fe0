"""A promise about samples that nobody has seen yet, with a confidence.

A few configs are chosen by what was learnt, and then run on held-out prompts, which nothing was
learnt from. A config is promised if few enough of these prompts miss the level: if no more than the
promised share of all samples reached it, so few misses would have a probability of at most
`(1 - confidence) / LOOKS` (the exact binomial test; Clopper and Pearson 1934). Dividing by the
number of configs that may be looked at (Bonferroni) makes the confidence hold for whichever is
chosen.

The prompts must be drawn as those of later use will be. A prompt that is given several times is run
with several seeds; the promise is then about these prompts with other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..errors import UsageError
from .quality import PSNR, psnrs
from .space.store import Result, RunStore

T = TypeVar("T")
# The most configs that are looked at for one promise.
LOOKS = 4
# Computed shares of these configs, as multiples of that of the least costly one that is good on the
# prompts that were learnt from.
SPREAD = (1.0, 1.25, 1.6, 2.2)


def chance(runs: int, missed: int, share: float) -> float:
    """Probability that at most `missed` of `runs` samples miss what a `share` of all reaches."""
    logs = [
        math.lgamma(runs + 1)
        - math.lgamma(j + 1)
        - math.lgamma(runs - j + 1)
        + j * math.log1p(-share)
        + (runs - j) * math.log(share)
        for j in range(missed + 1)
    ]
    return min(1.0, sum(map(math.exp, logs)))


def allowed(runs: int, share: float, doubt: float) -> int:
    """The most of `runs` samples that may miss the level; -1 where so few runs prove nothing."""
    missed = -1
    while missed + 1 < runs and chance(runs, missed + 1, share) <= doubt:
        missed += 1
    return missed


def least_runs(share: float, doubt: float, missed: int = 0) -> int:
    """The fewest samples that prove the share if `missed` of them miss the level."""
    low, high = missed, missed + 1
    while chance(high, missed, share) > doubt:
        low, high = high, 2 * high
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle, missed, share) <= doubt else (middle, high)
    return high


def surely_reached(runs: int, missed: int, doubt: float) -> float:
    """The largest share that can be promised: a lower bound, wrong with probability `doubt`."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if chance(runs, missed, middle) <= doubt else (low, middle)
    return low


@dataclass(frozen=True)
class Promise:
    """What is promised of samples to come.

    Attributes:
        psnr: level in dB.
        share: of the samples that reach it, at least.
        confidence: in that.
    """

    psnr: float
    share: float
    confidence: float

    @property
    def doubt(self) -> float:
        """The probability with which the test of one config may err."""
        return (1 - self.confidence) / LOOKS

    @property
    def least(self) -> int:
        """The fewest held-out prompts that can prove it."""
        return least_runs(self.share, self.doubt)

    def __str__(self) -> str:
        return (
            f"{self.psnr:g} dB for {100 * self.share:g} % of the samples with "
            f"{100 * self.confidence:g} % confidence"
        )

    def check_count(self, held_out: int, learnt: int) -> None:
        """Refuse too few prompts before anything runs.

        Args:
            held_out: prompts that there are besides those that are learnt from.
            learnt: prompts that are learnt from.

        Raises:
            UsageError: not even a config that never missed the level could be promised.
        """
        if held_out < self.least:
            spare = least_runs(self.share, self.doubt, 2)
            raise UsageError(
                f"{self} needs at least {self.least} prompts besides the {learnt} that are learnt "
                f"from, none of which may miss the level ({spare} prompts if 2 of them may), and "
                f"there are {held_out}; give more prompts, or promise less"
            )


@dataclass(frozen=True)
class Tested:
    """What one config gave on held-out prompts.

    Attributes:
        levels: PSNR of the samples in dB; only the first ones where the test was ended early.
        missed: how many of them do not reach the level.
        held: whether it can be promised.
    """

    levels: tuple[float, ...]
    missed: int
    held: bool


def first_that_holds(
    promise: Promise,
    configs: Sequence[T],
    levels: Callable[[T], Generator[float]],
    runs: int,
    told: Callable[[T, Tested], None] = lambda config, tested: None,
) -> list[Tested]:
    """Test configs on held-out prompts in their order, until one can be promised.

    Args:
        promise: what to promise.
        configs: at most `LOOKS`, the least costly first; they must not depend on these prompts.
        levels: runs a config and yields the PSNR of one held-out prompt after the other, in dB.
        runs: number of held-out prompts.
        told: called after each test.

    Returns:
        All tests in this order. Where a config can be promised, the last test is of that one.
    """
    if len(configs) > LOOKS:
        raise ValueError(f"{len(configs)} configs; the correction is for {LOOKS}")
    most = allowed(runs, promise.share, promise.doubt)
    tests = []
    for config in configs:
        seen: list[float] = []
        missed = 0
        with closing(levels(config)) as found:
            for level in found:
                seen.append(level)
                missed += level < promise.psnr
                if missed > most:  # the remaining ones cannot save it
                    break
        tests.append(Tested(tuple(seen), missed, len(seen) >= runs and missed <= most))
        told(config, tests[-1])
        if tests[-1].held:
            break
    return tests


def spread(values: Sequence[float], start: float) -> list[int]:
    """Which of several configs to look at: a few of increasing cost.

    Args:
        values: their computed shares.
        start: computed share of the least costly one that was good so far.

    Returns:
        Indices by rising share, at most `LOOKS`.
    """
    dearer = sorted((value, i) for i, value in enumerate(values) if value >= start - 1e-9)
    found: dict[int, None] = {}
    for factor in SPREAD[:LOOKS]:
        within = [i for value, i in dearer if value <= start * factor + 1e-9]
        if within:
            found[within[-1]] = None
    return list(found)


class HeldOut:
    """Held-out prompts: their dense outputs and the levels of configs on them, kept in a store.

    Args:
        generate: runs a call with a seed on the pipeline as it is, (B, …) as bytes.
        calls: arguments of the pipeline call, one mapping per prompt.
        seed: of the first one's noise; each further one has the next.
        store: where all is kept.
        named: name of the run of a call with a seed.
        clock: seconds, by which generations are timed.
    """

    def __init__(
        self,
        generate: Callable[[Mapping[str, Any], int], np.ndarray],
        calls: Sequence[Mapping[str, Any]],
        seed: int,
        store: RunStore,
        named: Callable[[Mapping[str, Any], int], str],
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._generate, self._calls, self._seed, self._store = generate, calls, seed, store
        self._runs = [named(call, seed + i) for i, call in enumerate(calls)]

    def __len__(self) -> int:
        return len(self._calls)

    def _made(self, i: int) -> np.ndarray:
        return self._generate(self._calls[i], self._seed + i)

    def _dense(self, i: int) -> np.ndarray:
        made = self._store.arrays(f"dense-{self._runs[i]}", lambda: {"frames": self._made(i)})
        return made["frames"]

    def make_dense(self) -> None:
        """Make the dense outputs that are not there; the pipeline must be dense.

        Raises:
            UsageError: the disk is full.
        """
        for i in range(len(self)):
            self._dense(i)

    def levels(
        self, on: Callable[[], AbstractContextManager[Any]], config: str
    ) -> Generator[float]:
        """PSNR of each prompt's worst sample in dB, as it is known or with a config put on.

        Args:
            on: puts the config on.
            config: its name.
        """
        key = PSNR.key
        for i, run in enumerate(self._runs):
            known = self._store.result(run, config, {key})
            if known is None:
                with on():
                    began = self._clock()
                    frames = self._made(i)
                    seconds = self._clock() - began
                known = Result({key: psnrs(frames, self._dense(i))}, seconds)
                self._store.add(run, config, known)
            yield min(known.levels[key])


@dataclass(frozen=True)
class Outcome:
    """What came of testing configs for a promise.

    Attributes:
        held: whether the last one that was tested can be promised.
        words: that in a line.
    """

    held: bool
    words: str

    @classmethod
    def of(
        cls, promise: Promise, tests: Sequence[Tested], configs: int, runs: int, label: str
    ) -> Outcome:
        """From all tests, of so many configs on so many prompts; the last was of `label`."""
        last = tests[-1]
        if not last.held:
            most = allowed(runs, promise.share, promise.doubt)
            return cls(
                False,
                f"no config can be promised to reach {promise}: the safest of {configs}, {label}, "
                f"misses it on {last.missed} of {len(last.levels)} held-out prompts, and {most} of "
                f"{runs} may; promise less, or run dense",
            )
        sure = surely_reached(runs, last.missed, promise.doubt)
        return cls(
            True,
            f"promised: {promise} by {label}, which {runs - last.missed} of {runs} held-out "
            f"prompts reach (at least {100 * sure:.1f} % of all)",
        )
