"""Speed-ups from pairs: a run of a row and a dense run of its own.

Neighbours meet the same moment of the machine, so that what is busy divides out of their ratio, and
the median of such ratios forgets the pairs in which it did not. Where a pair met other work, the
clock decides that other work does not stretch: process time on a CPU, device events on a GPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from .timing import APART, Timing, apart

# A row that is faster than its computed share allows by more than this was not timed right.
IMPOSSIBLE = 1.05
WHOLE = 0.999
# Another seed does the same work: how far from 1.00 its median may lie whatever its interval.
CONTROL = 0.05
_WIDE = 0.1


class State(StrEnum):
    """What a row's speed-up is worth."""

    OK = "ok"
    NOISY = "noisy"
    IMPOSSIBLE = "impossible"
    UNSKIPPED = "nothing skipped"
    UNTIMED = "untimed"


@dataclass(frozen=True)
class Pair:
    """A dense run and a row's run, one right after the other."""

    dense: Timing
    row: Timing

    @property
    def wall(self) -> float:
        """Ratio of wall-clocks."""
        return self.dense.seconds / self.row.seconds

    @property
    def own(self) -> float | None:
        """Ratio on the clock that other work does not stretch, None where there is none."""
        if not self.dense.own or not self.row.own:
            return None
        return self.dense.own / self.row.own

    @property
    def busy(self) -> bool:
        """Whether other work came between, as far as the system tells."""
        waited = (self.dense.waited, self.row.waited)
        if any(waited):
            return True
        if self.own is None or not apart(self.wall, self.own):
            return False
        # Threads that work side by side may shorten dense more than the row: that is not noise.
        return None in waited or not (self.dense.parallel or self.row.parallel)

    @property
    def ratio(self) -> float:
        """The pair's speed-up, on the clock that can be trusted."""
        return self.own if self.busy and self.own is not None else self.wall

    @property
    def dense_seconds(self) -> float:
        """The dense run's time on the clock that `ratio` is read from."""
        own = self.dense.own
        return own if self.busy and own is not None else self.dense.seconds

    def unsteady(self, dense: Dense) -> bool:
        """Whether its dense run lies far from the other dense runs."""
        usual = dense.own if self.busy and self.own is not None else dense.seconds
        return usual is not None and apart(self.dense_seconds, usual)

    def to_dict(self) -> dict[str, Any]:
        """As a line of results holds it."""
        return {"dense": self.dense.to_dict(), "row": self.row.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Pair:
        """A pair as `to_dict` gave it."""
        return cls(Timing.from_dict(data["dense"]), Timing.from_dict(data["row"]))


@dataclass(frozen=True)
class Dense:
    """One reference from all dense runs: medians, and how many they were."""

    seconds: float | None
    own: float | None
    n: int

    @classmethod
    def of(cls, runs: Sequence[Timing]) -> Dense:
        """The reference of these runs; runs that met a busy moment count where all did."""
        quiet = [run.seconds for run in runs if not run.waited] or [run.seconds for run in runs]
        own = [run.own for run in runs if run.own]
        return cls(
            statistics.median(quiet) if quiet else None,
            statistics.median(own) if own else None,
            len(runs),
        )


@dataclass(frozen=True)
class Timed:
    """What a row's pairs say together.

    Attributes:
        state: what the speed-up is worth.
        reason: why, in words for people; empty where it is right.
        speedup: median and quartiles over samples, None where there are no pairs.
        wall, own: medians on wall-clock and on the clock that other work does not stretch.
        clock: the clock behind `speedup`.
        pairs: all pairs, repeats included.
        busy: samples without a single undisturbed pair.
        denoiser: quartiles of the ratios inside transformer calls, of undisturbed pairs.
    """

    state: State
    reason: str
    speedup: dict[str, float] | None
    wall: float | None = None
    own: float | None = None
    clock: str = ""
    pairs: int = 0
    busy: int = 0
    denoiser: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As `summary.json` holds it, without the speed-ups."""
        keep = ("state", "reason", "wall", "own", "clock", "pairs", "busy")
        return {name: getattr(self, name) for name in keep}


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median, p25 and p75."""
    low, middle, high = np.percentile(np.asarray(values, dtype=np.float64), (25, 50, 75))
    return {"median": float(middle), "p25": float(low), "p75": float(high)}


def best_of(pairs: Sequence[Pair]) -> list[Pair]:
    """The undisturbed pairs of one sample, or all where there is none."""
    return [pair for pair in pairs if not pair.busy] or list(pairs)


def _clock(used: Sequence[Pair]) -> str:
    names = set()
    for pair in used:
        other = "process time" if pair.dense.device is None else "device events"
        names.add(other if pair.busy and pair.own is not None else "wall-clock")
    return " and ".join(sorted(names, reverse=True))


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def timed(
    samples: Sequence[Sequence[Pair]],
    shares: Sequence[float],
    bounds: Sequence[float | None],
    dense: Sequence[Dense],
    skips: bool,
) -> Timed:
    """The speed-up of a row, and whether it can be told.

    Args:
        samples: each timed sample's pairs.
        shares: each sample's computed share; it tells work that varies from noise.
        bounds: each sample's highest speed-up that the work it did allows, None where unknown.
        dense: each sample's reference, from all dense runs of its machine.
        skips: whether the row skips anything at all.
    """
    kept = [best_of(pairs) for pairs in samples]
    if not kept:
        return Timed(State.UNTIMED, "no sample was timed with a dense run of its own", None)
    ratios = [statistics.median([pair.ratio for pair in pairs]) for pairs in kept]
    flat = [pair for pairs in kept for pair in pairs]
    inside = [
        pair.dense.denoiser / pair.row.denoiser
        for pair in flat
        if not pair.busy and pair.dense.denoiser and pair.row.denoiser
    ]
    state, reason = State.UNSKIPPED, ""
    if skips:
        unsteady = sum(p.unsteady(own) for own, ps in zip(dense, kept, strict=True) for p in ps)
        state, reason = _state(ratios, flat, shares, bounds, unsteady)
    return Timed(
        state,
        reason,
        quartiles(ratios),
        _median([pair.wall for pair in flat]),
        _median([pair.own for pair in flat]),
        _clock(flat),
        sum(len(pairs) for pairs in samples),
        sum(all(pair.busy for pair in pairs) for pairs in samples),
        quartiles(inside) if inside else None,
    )


def _state(
    ratios: Sequence[float],
    flat: Sequence[Pair],
    shares: Sequence[float],
    bounds: Sequence[float | None],
    unsteady: int,
) -> tuple[State, str]:
    middle = statistics.median(ratios)
    known = [bound for bound in bounds if bound is not None]
    if known and middle > IMPOSSIBLE * (most := statistics.median(known)):
        words = f"{middle:.2f}× was measured, and the work it did allows {most:.2f}×"
        return State.IMPOSSIBLE, words
    if any(pair.busy and pair.own is None for pair in flat):
        return State.NOISY, "other work ran at the same time, and no clock tells how much"
    if unsteady * 2 > len(flat):
        return State.NOISY, "its dense runs took another time than the other dense runs"
    # Work that varies from sample to sample, as adaptive methods do, divides out.
    even = quartiles([ratio * share for ratio, share in zip(ratios, shares, strict=True)])
    spread = even["p75"] / even["p25"] - 1
    if spread > APART:
        return State.NOISY, f"its pairs differ by {spread:.0%}"
    return State.OK, ""


def control_state(control: Timed) -> tuple[bool, str]:
    """Whether a whole table can be trusted: another seed does dense's work, so it takes as long.

    Args:
        control: of the row "dense, another seed".

    Returns:
        Whether it can, and a line that prints the table's noise.
    """
    if control.speedup is None:
        return False, "the noise of this table is not known: dense with another seed was not timed"
    low, middle, high = (control.speedup[key] for key in ("p25", "median", "p75"))
    shown = f"dense with another seed, the same work, came out at {middle:.2f}×"
    shown += f" [{low:.2f}, {high:.2f}]"
    inside = abs(middle - 1) <= max(CONTROL, (high - low) / 2)
    if inside and (high - low) / 2 <= _WIDE and control.state is not State.NOISY:
        return True, f"noise of this table: {shown}"
    return False, (
        f"speed-ups of this table are noisy: {shown}; go by the computed shares, or measure "
        "again on a quiet machine"
    )
