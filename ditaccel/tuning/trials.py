"""Masks in closed loop: each is run on prompt-seed pairs and compared with dense.

A mask that cannot become better than the best one so far is given up after the first pairs. What
was measured is remembered, and written to a file line by line, so that a search that was killed
begins again where it was: the same draws meet the same answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..io.checked import items, maybe, number, read_records, record, text, whole
from ..io.files import append_line, mend_lines, unwritten
from ..io.provenance import fingerprint_of
from .masks import Mask
from .quality import MOST_PSNR, doubt_of, level_of

# Pairs that every mask is run on, and standard deviations of doubt in its favour.
_FIRST, _DOUBT = 2, 2.0
# Differences between masks scatter from pair to pair by at least this, in dB.
_LEAST_SCATTER = 1.0

# Runs a mask on one pair after the other: yields the samples' levels in dB.
Run = Callable[[Mask], Iterator[list[float]]]


@dataclass(frozen=True)
class Trial:
    """What a mask gave.

    Attributes:
        mask: that was run.
        levels: of the samples in dB, in the order of the pairs.
        complete: whether all pairs were run; else it was given up.
    """

    mask: Mask
    levels: tuple[float, ...]
    complete: bool = True


@dataclass
class Scatter:
    """How far the differences between two masks scatter from sample to sample, in dB."""

    squares: float = 0.0
    freedom: int = 0

    def saw(self, ours: Sequence[float], theirs: Sequence[float]) -> None:
        """Learn from two masks that were run on the same samples."""
        difference = np.subtract(ours, theirs)
        self.squares += float(np.square(difference - difference.mean()).sum())
        self.freedom += len(difference) - 1

    @property
    def deviation(self) -> float:
        """Standard deviation of the differences."""
        seen = (self.squares / self.freedom) ** 0.5 if self.freedom else 0.0
        return max(seen, _LEAST_SCATTER)


def is_hopeless(
    levels: Sequence[float], to_beat: Sequence[float], statistic: str, scatter: float
) -> bool:
    """Whether the remaining samples cannot bring a mask up to another one.

    Of the worst sample and the worst tenth that is certain: even perfect samples would not. The
    mean of n differences lies within `scatter * sqrt((n - m) / (n m))` of that of the first m, and
    twice that is granted.

    Args:
        levels: of the samples run so far, in dB.
        to_beat: levels of all samples that the mask is measured by.
        statistic: `mean`, `p10` or `min`.
        scatter: standard deviation of the differences, in dB.
    """
    done, total = len(levels), len(to_beat)
    if done >= total:
        return False
    if statistic != "mean":
        best = [*levels, *[MOST_PSNR] * (total - done)]
        return level_of(best, statistic) <= level_of(to_beat, statistic)
    if done < _FIRST:
        return False
    ahead = float(np.mean(np.subtract(levels, to_beat[:done])))
    return ahead < -_DOUBT * scatter * ((total - done) / (total * done)) ** 0.5


_STEPS = items(whole(0))
_LINE = record(
    {"steps": _STEPS, "levels": items(number())},
    {"others": maybe(_STEPS), "orders": _STEPS, "other_orders": _STEPS},
)


@dataclass
class Journal:
    """The file in which trials are remembered over a kill.

    Args:
        path: of the file; made with the first trial.
        of: what the trials belong to: model, calls, seeds, statistic.

    Raises:
        UsageError: the file is damaged, or of another search.
    """

    path: Path
    of: str
    known: dict[Mask, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mend_lines(self.path)
        head = record({"search": text})
        lines = read_records(
            self.path, lambda value, at: (head if "search" in value else _LINE)(value, at), _AGAIN
        )
        if not lines:
            return
        if lines[0].get("search") != self.of:
            raise UsageError(
                f"{self.path} remembers another search (its model, prompts, seeds, steps or "
                "settings differ); name another file, or delete it"
            )
        for line in lines[1:]:
            others = line.get("others")
            mask = Mask(
                tuple(line["steps"]),
                None if others is None else tuple(others),
                tuple(line.get("orders", ())),
                tuple(line.get("other_orders", ())),
            )
            self.known[mask] = tuple(line["levels"])

    def add(self, trial: Trial) -> None:
        """Remember a trial.

        Raises:
            UsageError: the disk is full or not writable.
        """
        if not self.path.exists():
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise unwritten(self.path, error) from None
            append_line(self.path, {"search": self.of})
        mask = trial.mask
        line: dict[str, Any] = {"steps": mask.steps, "levels": trial.levels}
        if mask.others is not None:
            line["others"] = mask.others
        if mask.orders:
            line["orders"] = mask.orders
        if mask.other_orders:
            line["other_orders"] = mask.other_orders
        append_line(self.path, line)
        self.known[mask] = trial.levels


def search_name(pipe: Any, calls: Sequence[Any], seed: int) -> str:
    """What trials belong to: they say nothing of other weights, calls, seeds or schedulers."""
    scheduler = pipe.scheduler
    options = type(scheduler).__name__, dict(scheduler.config), list(calls), seed
    return hashlib.sha256(f"{fingerprint_of(pipe)}{options!r}".encode()).hexdigest()[:16]


_AGAIN = "delete that line to have the plan run again"


class Trials:
    """Runs masks, and gives those up early that cannot win.

    Args:
        run: runs a mask on one pair after the other.
        samples: levels that a complete run gives.
        statistic: `mean`, `p10` or `min`: by what masks are compared.
        measure: makes one level of those of the samples, by the statistic.
        known: what was run so far, of other searches too; what is run is added to it.
        journal: where trials are remembered over a kill, None for nowhere.
    """

    def __init__(
        self,
        run: Run,
        samples: int,
        statistic: str,
        measure: Callable[[Sequence[float], str], float] = level_of,
        known: dict[Mask, Trial] | None = None,
        journal: Journal | None = None,
    ) -> None:
        self._run, self._samples = run, samples
        self.statistic, self._measure = statistic, measure
        self._journal = journal
        self._known = {} if known is None else known
        self._scatter = Scatter()

    def __contains__(self, mask: Mask) -> bool:
        return mask in self._known

    def level(self, trial: Trial) -> float:
        """What masks are compared by, in dB."""
        return self._measure(trial.levels, self.statistic)

    def surpasses(self, trial: Trial, than: Trial) -> bool:
        """Whether the mean gain over the samples is more than its standard error.

        With the other statistics every gain counts.
        """
        gain = np.subtract(trial.levels, than.levels)
        return self.statistic != "mean" or float(gain.mean()) > doubt_of(list(gain), "mean")

    def tried(self, mask: Mask, to_beat: Sequence[float] | None = None) -> Trial:
        """Run a mask, or remember what it gave.

        Args:
            mask: to run.
            to_beat: levels of all samples; once the mask cannot get above them it is given up. None
                runs all pairs.
        """
        known = self._known.get(mask)
        if known is None or not (known.complete or to_beat is not None):
            self._known[mask] = known = self._measured(mask, to_beat)
        if known.complete and to_beat is not None:
            self._scatter.saw(known.levels, to_beat)
        return known

    def _measured(self, mask: Mask, to_beat: Sequence[float] | None) -> Trial:
        kept = () if self._journal is None else self._journal.known.get(mask, ())
        levels = list(kept)
        if len(levels) < self._samples and not self._hopeless(levels, to_beat):
            levels = []
            with closing(self._run(mask)) as runs:  # type: ignore[type-var]
                for more in runs:
                    levels += more
                    if self._hopeless(levels, to_beat):
                        break
        trial = Trial(mask, tuple(levels), len(levels) >= self._samples)
        if self._journal is not None and trial.levels != kept:
            self._journal.add(trial)
        return trial

    def _hopeless(self, levels: Sequence[float], to_beat: Sequence[float] | None) -> bool:
        if to_beat is None or not levels:
            return False
        return is_hopeless(levels, to_beat, self.statistic, self._scatter.deviation)
