"""Successive halving: many candidates on few prompts, then the better half on twice as many.

(Jamieson and Talwalkar 2016, arXiv 1502.07943.) Candidates that lie on a front, one behind the
other by seconds, are not all run: where the front crosses the target is found by bisection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...caching.engine.options import MemoryBudget
from ...config import AccelerationConfig
from ...errors import UsageError
from ..quality import Measure, measure_of
from ..target import Target
from .store import config_name

# Seconds of safer candidates, by those of one that missed the level on all prompts.
_SAFER = (1.15, 1.35, 1.7, 2.2)
# Candidates of a front on either side of where it crosses the target that enter the race.
_AROUND = 1


@dataclass(frozen=True)
class Candidate:
    """A config that may win.

    Attributes:
        config: whole, steps included.
        kind: where it comes from: `joint`, `cache`, `attention`, `steps` or `given`.
        seconds: of a generation, as they are expected; None where nothing is known beforehand.
    """

    config: AccelerationConfig
    kind: str
    seconds: float | None = None


@dataclass(frozen=True)
class Standing:
    """What a candidate gave on the first prompts.

    Attributes:
        candidate: that was run.
        levels: of the samples.
        seconds: of a generation, the median.
        runs: generations.
        memory: most bytes that the cache held.
    """

    candidate: Candidate
    levels: tuple[float, ...]
    seconds: float
    runs: int
    memory: float = 0.0


@dataclass(frozen=True)
class Aim:
    """What the race is for: the least seconds at a level, or the best level within seconds.

    Attributes:
        measure: of the quality.
        statistic: of the samples: `mean`, `p10` or `min`.
        level: to reach; None for the best within `seconds`.
        seconds: of a generation that may be taken, where no level is given.
        memory: most bytes that a cache may hold; None for any.
    """

    measure: Measure
    statistic: str = "mean"
    level: float | None = None
    seconds: float | None = None
    memory: int | None = None

    @classmethod
    def of(cls, target: Target, dense: float) -> Aim:
        """What a target comes to where a dense generation takes so many seconds.

        Raises:
            ConfigError: an unknown metric, or one that cannot be a target.
            UsageError: the target is not one in seconds, or the metric lacks its weights.
        """
        if target.computed_share is not None or target.attention_error is not None:
            raise UsageError(
                "a space is searched in seconds: give psnr, level, speedup or seconds as target"
            )
        return cls(
            measure_of(target.metric, target.weights),
            target.statistic,
            target.psnr if target.psnr is not None else target.level,
            target.seconds if target.speedup is None else dense / target.speedup,
            MemoryBudget.parse(target.memory),
        )

    def fits(self, standing: Standing) -> bool:
        """Whether its cache holds no more than is allowed."""
        return self.memory is None or standing.memory <= self.memory

    def reached(self, standing: Standing) -> bool:
        """Whether a candidate does what is asked."""
        if not self.fits(standing):
            return False
        if self.level is not None:
            found = self.measure.surely(standing.levels, self.statistic)
            return self.measure.reaches(found, self.level)
        return self.seconds is None or standing.seconds <= self.seconds

    def rank(self, standing: Standing) -> tuple[Any, ...]:
        """The better, the smaller: those that do what is asked come first."""
        level = self.measure.surely(standing.levels, self.statistic)
        loss = -level if self.measure.higher else level
        if self.reached(standing):
            return (0, standing.seconds, loss) if self.level is not None else (0, loss)
        if not self.fits(standing):
            return (2, standing.memory)
        return (1, loss) if self.level is not None else (1, standing.seconds)


@dataclass
class Race:
    """Runs candidates against an aim.

    Args:
        aim: what for.
        run: runs a candidate on the first so many prompts, or remembers what it gave.
        prompts: how many there are.
        over: asked before each run whether the time is up.
    """

    aim: Aim
    run: Callable[[Candidate, int], Standing]
    prompts: int
    over: Callable[[], bool] = lambda: False
    standings: dict[str, Standing] = field(default_factory=dict)

    def entered(self, front: Sequence[Candidate], prompts: int) -> list[Candidate]:
        """Those of a front, by rising seconds, that lie where it crosses the target."""
        aim = self.aim
        if aim.level is None:
            within = [
                i
                for i, each in enumerate(front)
                if aim.seconds is None or each.seconds is None or each.seconds <= aim.seconds
            ]
            last = within[-1] if within else 0
            return list(front[max(0, last - 2) : last + 2])
        low, high = 0, len(front) - 1
        while low < high and not self.over():
            middle = (low + high) // 2
            if aim.reached(self._stand(front[middle], prompts)):
                high = middle
            else:
                low = middle + 1
        return list(front[max(0, low - _AROUND) : low + _AROUND + 1])

    def _stand(self, candidate: Candidate, prompts: int) -> Standing:
        standing = self.run(candidate, prompts)
        self.standings[config_name(candidate.config)] = standing
        return standing

    def won(self, candidates: Sequence[Candidate], first: int) -> Standing | None:
        """The best of some candidates: on `first` prompts, then half of them on twice as many.

        Returns:
            None where none could be run.
        """
        # Fronts share plans: a config that ran twice would crowd another one out.
        different: dict[str, Candidate] = {}
        for candidate in candidates:
            different.setdefault(config_name(candidate.config), candidate)
        left, prompts = list(different.values()), min(first, self.prompts)
        while left:
            ranked: list[Standing] = []
            for each in left:
                if self.over() and ranked:
                    break
                ranked.append(self._stand(each, prompts))
            ranked.sort(key=self.aim.rank)
            if prompts >= self.prompts or self.over():
                return ranked[0]
            left = [each.candidate for each in ranked[: -(-len(ranked) // 2)]]
            prompts = min(2 * prompts, self.prompts)
        return None

    def safer(self, missed: Standing, fronts: Sequence[Sequence[Candidate]]) -> Standing:
        """The first that reaches the level among those that take longer than one that missed it.

        A few prompts let through what all of them do not; further along each front it is safer.

        Args:
            missed: the best so far.
            fronts: candidates by rising seconds.
        """
        best = missed
        for factor in _SAFER:
            for front in fronts:
                dearer = [c for c in front if (c.seconds or 0.0) >= factor * missed.seconds]
                if dearer and not self.over():
                    best = min(best, self._stand(dearer[0], self.prompts), key=self.aim.rank)
            if self.aim.reached(best):
                break
        return best
