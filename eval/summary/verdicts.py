"""Is a row better than just taking fewer steps? As data, and in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from ..measure.pairs import State
from ..metrics.base import ACCURACY
from ..metrics.psnr import CAP
from ..specs import JUDGED, Role
from .pareto import CLOSE_DB, CLOSE_SPEED, Point, by_share, dominated, envelope, in_time, psnr_at

_DROP = 0.05
# Fewer samples that stay the same picture than this are a warning, whatever the mean says.
_KEPT = 0.95
# Differences of this quality stop to be plain to see.
PLAIN_DB = 30.0


class Kind(StrEnum):
    """What a verdict says."""

    BETTER = "better than fewer steps"
    EVEN = "no better than fewer steps"
    WORSE = "fewer steps would serve better"
    FASTER = "faster than any fewer steps measured"
    FINER = "finer than any fewer steps measured"
    ALONE = "nothing to compare with"
    NO_FASTER = "no faster than dense"
    UNSKIPPED = "nothing skipped"
    ANOTHER_PICTURE = "another picture"
    NO_TIMING = "no timing"
    NOISY_TABLE = "noisy table"
    TABLE_NOISE = "noise of the table"
    DENSE_CHANGED = "dense changed"
    SHARED_MACHINE = "shared machine"
    SEVERAL_MACHINES = "several machines"


class Level(StrEnum):
    """How a verdict is to be taken."""

    GOOD = "good"
    NOTE = "note"
    WARNING = "warning"


class Missing(StrEnum):
    """Why no row makes the headline."""

    NOISY = "noisy"
    OUTSIDE = "outside what fewer steps were measured at"
    BEATEN = "beaten"
    NOTHING = "no method"

    @property
    def text(self) -> str:
        """The same in words for people."""
        return {
            Missing.NOISY: "no best row: the timing is noisy, so go by the computed shares",
            Missing.OUTSIDE: "no method could be compared with fewer steps at its own speed: "
            "measure more step counts (option `fewer`)",
            Missing.BEATEN: "no method is better than fewer steps at the same time here",
            Missing.NOTHING: "no method was measured",
        }[self]


class Basis(StrEnum):
    """What rows were compared by."""

    TIME = "time"
    SHARE = "computed share"
    NONE = "nothing"


@dataclass(frozen=True)
class Verdict:
    """A verdict on one row, or on the whole table.

    Attributes:
        kind: what it says.
        level: how it is to be taken.
        text: the same in words for people.
        config: id of the row, None where the table is meant.
        basis: what the row was compared by.
        fewer_psnr: quality of fewer steps at the same time (or share), None outside their range.
        lost: prompt accuracies that fell.
    """

    kind: Kind
    level: Level
    text: str
    config: str | None = None
    basis: Basis = Basis.NONE
    fewer_psnr: float | None = None
    lost: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As `summary.json` holds it."""
        return {**asdict(self), "lost": list(self.lost)}


def _lost(row: dict[str, Any], dense: dict[str, Any]) -> list[str]:
    """Prompt accuracies that fell, each with both figures."""
    lost = []
    for name, value in row.get(ACCURACY, {}).items():
        full = dense.get(ACCURACY, {}).get(name)
        if value is not None and full is not None and full - value >= _DROP:
            lost.append(f"{name} {full:.0%} → {value:.0%}")
    return lost


def _times(value: float) -> str:
    return f"{value:.2f}×"


def _quality(point: Point) -> str:
    return f"at {point.psnr:.1f} dB" if point.psnr < CAP else "and identical to dense"


class _Against:
    """Compares one row with fewer steps, by time or by computed share."""

    def __init__(self, point: Point, fewer: Sequence[Point], basis: Basis, head: str) -> None:
        self.point, self.fewer, self.basis, self.head = point, fewer, basis, head
        self.same = "at the same time" if basis is Basis.TIME else "at the same computed share"

    def _speed(self, point: Point) -> str:
        if self.basis is Basis.TIME:
            return _times(point.speedup)
        return f"{1 / point.speedup:.0%} computed"

    def _verdict(self, kind: Kind, level: Level, text: str, here: float | None = None) -> Verdict:
        words = f"{self.head}: {text}."
        return Verdict(kind, level, words, self.point.id, self.basis, here)

    def verdict(self) -> Verdict:
        """The verdict on the row."""
        point = self.point
        if point.speedup < 1 + CLOSE_SPEED:
            words = "no faster than dense; loosen its options, or leave it off"
            if self.basis is Basis.SHARE:
                words = "nearly all is computed; loosen its options, or leave it off"
            return self._verdict(Kind.NO_FASTER, Level.WARNING, words)
        if not self.fewer:
            return self._verdict(Kind.ALONE, Level.NOTE, "no fewer-steps row to compare with")
        here = psnr_at(self.fewer, point.speedup)
        return self._outside() if here is None else self._inside(*here)

    def _inside(self, level: float, where: str) -> Verdict:
        gain = self.point.psnr - level
        at = f"({level:.1f} dB, {where})"
        if gain >= CLOSE_DB:
            words = f"{gain:.1f} dB better than fewer steps {self.same} {at}"
            return self._verdict(Kind.BETTER, Level.GOOD, words, level)
        if gain > -CLOSE_DB:
            words = f"no better than fewer steps {self.same} {at}"
            return self._verdict(Kind.EVEN, Level.WARNING, words, level)
        best = min(self.fewer, key=lambda p: abs(math.log(p.speedup / self.point.speedup)))
        words = (
            f"fewer steps would serve you better: {best.label} gives {best.psnr:.1f} dB at "
            f"{self._speed(best)} ({level:.1f} dB {self.same}, {where})"
        )
        return self._verdict(Kind.WORSE, Level.WARNING, words, level)

    def _outside(self) -> Verdict:
        point = self.point
        timed = self.basis is Basis.TIME
        curve = envelope(self.fewer)
        slow, fast = curve[-1], curve[0]
        if point.speedup > fast.speedup:
            than, level = ("better", Level.GOOD)
            if point.psnr <= fast.psnr + CLOSE_DB:
                than, level = "other", Level.NOTE
            if point.psnr < fast.psnr - CLOSE_DB:
                than, level = "worse", Level.WARNING
            words = (
                f"{'faster' if timed else 'less computed'} than every fewer-steps row measured; "
                f"{than} quality than the {'fastest' if timed else 'least of them'} "
                f"({fast.label}: {self._speed(fast)} at {fast.psnr:.1f} dB)"
            )
            return self._verdict(Kind.FASTER, level, words)
        if slow.psnr >= point.psnr:
            words = (
                f"fewer steps would serve you better: {slow.label} gives {slow.psnr:.1f} dB at "
                f"{self._speed(slow)}"
            )
            return self._verdict(Kind.WORSE, Level.WARNING, words)
        words = (
            f"{point.psnr - slow.psnr:.1f} dB better than the best that fewer steps gave "
            f"({slow.label}: {self._speed(slow)} at {slow.psnr:.1f} dB), but "
            f"{'slower' if timed else 'more computed'} than that"
        )
        return self._verdict(Kind.FINER, Level.NOTE, words)


def _verdict(point: Point, fewer: Sequence[Point], floor: float | None) -> Verdict:
    timed = point.state is State.OK and all(p.state is State.OK for p in fewer)
    speed = _times(point.speedup) if timed else f"{point.share:.0%} computed"
    head = f"{point.label}: {speed} {_quality(point)}"
    if point.state is State.UNSKIPPED:
        words = (
            f"{point.label}: nothing was skipped, and its warning says why (too few steps, too "
            "short a sequence); else loosen its options."
        )
        return Verdict(Kind.UNSKIPPED, Level.NOTE, words, point.id)
    if floor is not None and point.psnr <= floor + 1.0:
        words = f"{head}: as far from dense as another seed is; the picture is another one."
        return Verdict(Kind.ANOTHER_PICTURE, Level.WARNING, words, point.id)
    if timed:
        return _Against(point, fewer, Basis.TIME, head).verdict()
    if point.config.sparse or point.share <= 0:
        words = (
            f"{point.label}: {_quality(point)}, and its timing was noisy: measure again on a "
            "quiet machine."
        )
        return Verdict(Kind.NO_TIMING, Level.WARNING, words, point.id)
    own = by_share([point])[0]
    return _Against(own, by_share(fewer), Basis.SHARE, f"{head} (its timing was noisy)").verdict()


def _flips(verdict: Verdict, point: Point, row: dict[str, Any]) -> Verdict:
    """The verdict with the samples that became another picture, which a mean hides."""
    kept, n = point.kept, row.get("n")
    if kept is None or not n or kept >= 1 or verdict.kind is Kind.ANOTHER_PICTURE:
        return verdict
    words = f"{verdict.text} {round((1 - kept) * n)} of {n} samples became another picture."
    return replace(verdict, level=verdict.level if kept >= _KEPT else Level.WARNING, text=words)


def verdicts(points: Sequence[Point], rows: dict[str, Any]) -> list[Verdict]:
    """One verdict for every method and peer: is it better than just taking fewer steps?

    Where the timing of the row or of fewer steps is noisy, computed shares are compared.

    Args:
        points: of all rows.
        rows: `configs` of the summary.
    """
    fewer = [p for p in points if p.role is Role.FEWER_STEPS]
    usable = in_time(fewer)
    floor = next((p.psnr for p in points if p.role is Role.OTHER_SEED), None)
    dense: dict[str, Any] = next((rows[p.id] for p in points if p.role is Role.DENSE), {})
    found = []
    for point in points:
        if point.role not in JUDGED:
            continue
        # One noisy fewer-steps row of several does not take the others' time away.
        verdict = _verdict(point, usable or fewer, floor)
        lost = _lost(rows[point.id], dense)
        if lost:
            words = f"{verdict.text} Prompt accuracy falls: {', '.join(lost)}."
            verdict = replace(verdict, level=Level.WARNING, text=words, lost=tuple(lost))
        found.append(_flips(verdict, point, rows[point.id]))
    return found


def headline(points: Sequence[Point], found: Sequence[Verdict]) -> dict[str, Any]:
    """The row that a reader should look at first, with what it is compared with.

    It is a method's, its speed can be told, no row beats it in both speed and quality, and its own
    verdict is good: of such rows the fastest that keeps every picture as it is, to the eye; where
    there is none, the one closest to dense.

    Args:
        points: of all rows.
        found: their verdicts.

    Returns:
        `config` (None where no method earns it), `fewer` (the best fewer-steps row) and `peer`
        (the best other tool's row), each an id or None; `missing` says why there is no `config`.
    """
    timed = in_time(points)
    beaten = dominated(points)
    good = {v.config for v in found if v.level is Level.GOOD and v.basis is Basis.TIME}
    front = [p for p in timed if p.role is Role.METHOD and p.id in good and p.id not in beaten]
    same = [p for p in front if p.psnr >= PLAIN_DB and (p.kept is None or p.kept >= 1.0)]
    best = max(same, key=lambda p: p.speedup, default=None)
    if best is None:
        best = max(front, key=lambda p: p.psnr, default=None)
    fewer = [p for p in timed if p.role is Role.FEWER_STEPS]
    peers = [p for p in timed if p.role is Role.PEER]
    return {
        "config": best.id if best else None,
        "fewer": _nearest(best, fewer),
        "peer": _nearest(best, peers),
        "missing": None if best else _missing(points, found),
    }


def _missing(points: Sequence[Point], found: Sequence[Verdict]) -> Missing:
    methods = {p.id for p in points if p.role is Role.METHOD}
    own = [v for v in found if v.config in methods]
    if not own:
        return Missing.NOTHING
    if any(v.basis is Basis.SHARE or v.kind is Kind.NO_TIMING for v in own):
        return Missing.NOISY
    if any(v.kind in (Kind.FINER, Kind.ALONE) for v in own):
        return Missing.OUTSIDE
    return Missing.BEATEN


def _nearest(best: Point | None, others: Sequence[Point]) -> str | None:
    """Of other rows the best that is as fast, else the fastest; without a row, the finest."""
    if not others:
        return None
    if best is None:
        return max(others, key=lambda p: p.psnr).id
    fast = [p for p in others if p.speedup >= best.speedup * (1 - CLOSE_SPEED)]
    if fast:
        return max(fast, key=lambda p: p.psnr).id
    return max(others, key=lambda p: p.speedup).id
