"""Speed against quality: points, curves, speeds at equal quality, and dominance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from ..measure.pairs import State
from ..specs import COMPARED, Role, RunConfig

LEVELS = (25.0, 30.0, 35.0, 40.0)
# Differences below are within what one seed or a busy machine changes.
CLOSE_DB = 0.5
CLOSE_SPEED = 0.03
_WIDE_DB = 8.0


@dataclass(frozen=True)
class Point:
    """One row in the plane of speed and quality. Quality is PSNR: margins and levels are in dB.

    Attributes:
        config: the row.
        speedup: against dense; NaN where none can be told.
        psnr: mean, to dense.
        share: computed share.
        state: what `speedup` is worth.
        kept: share of samples that stay the same picture, None where unknown.
        spread: middle half of the samples' speed-ups.
        tail: 5th percentile of PSNR.
        samples: how many.
    """

    config: RunConfig
    speedup: float
    psnr: float
    share: float
    state: State = State.OK
    kept: float | None = None
    spread: tuple[float, float] = (math.nan, math.nan)
    tail: float = math.nan
    samples: int = 0

    @property
    def id(self) -> str:
        """Of the row."""
        return self.config.id

    @property
    def label(self) -> str:
        """Of the row."""
        return self.config.label

    @property
    def role(self) -> Role:
        """Of the row."""
        return self.config.role


def state_of(config: RunConfig, row: Mapping[str, Any], trusted: bool) -> State:
    """What the speed-up of a row is worth; noisy where the whole table is."""
    state = State(row["timing"]["state"])
    if state is State.OK and not trusted and config.role is not Role.DENSE:
        return State.NOISY
    return state


def points_of(
    configs: Sequence[RunConfig], rows: Mapping[str, Any], trusted: bool = True
) -> list[Point]:
    """The rows that have figures, in the run's order.

    Args:
        configs: of the run.
        rows: `configs` of the summary.
        trusted: False where the whole table's timing is noisy.
    """
    found = []
    for config in configs:
        row = rows.get(config.id)
        if row is None:
            continue
        speedups, psnr = row["speedup"] or {}, row["psnr"]
        speedup, tail = speedups.get("median", math.nan), psnr.get("p5")
        point = Point(
            config,
            float(speedup),
            float(psnr["mean"]),
            float(row["computed_share"]),
            state_of(config, row, trusted),
            psnr.get("kept"),
            (speedups.get("p25", speedup), speedups.get("p75", speedup)),
            float(psnr["mean"] if tail is None else tail),
            int(row["n"]),
        )
        found.append(point)
    return found


def in_time(points: Sequence[Point]) -> list[Point]:
    """The points whose speed can be told."""
    return [p for p in points if p.state is State.OK]


def by_share(points: Sequence[Point]) -> list[Point]:
    """The points with the speed-up that their computed share would allow in place of the timed one.

    Those that compute attention in part have none: the share does not see what they save.
    """
    return [replace(p, speedup=1 / p.share) for p in points if not p.config.sparse and p.share > 0]


def envelope(points: Sequence[Point]) -> list[Point]:
    """The points that no other point beats in both speed and quality, fastest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speedup, -p.psnr)):
        if not kept or point.psnr > kept[-1].psnr:
            kept.append(point)
    return kept


class Where(StrEnum):
    """Where on a curve a quality lies."""

    MEASURED = "measured"
    BETWEEN = "between"
    WIDE = "wide gap"
    BELOW = "not reached"
    ABOVE = "all above"
    NOISY = "noisy"
    EMPTY = "no points"


@dataclass(frozen=True)
class Match:
    """A place on a curve, or why there is none; `note` says it in words for people."""

    where: Where
    speedup: float | None
    share: float | None
    note: str


def at_psnr(points: Sequence[Point], level: float, timed: bool = True) -> Match:
    """Speed of a series at a quality, on its envelope.

    The logarithm of speed (and of the computed share) runs linearly with PSNR between two measured
    points; nothing is extrapolated.

    Args:
        points: of one series.
        level: PSNR in dB.
        timed: False where `speedup` is what the share would allow: it is then not named.
    """
    curve = envelope(points)
    if not curve:
        return Match(Where.EMPTY, None, None, "no points")
    fast, fine = curve[0], curve[-1]
    if level > fine.psnr:
        note = f"does not reach {level:g} dB (best {fine.psnr:.1f} dB)"
        return Match(Where.BELOW, None, None, note)
    if level < fast.psnr:
        cost = f"{fast.speedup:.2f}×" if timed else f"{fast.share:.0%} computed"
        note = f"all points lie above: {cost} already at {fast.psnr:.1f} dB"
        return Match(Where.ABOVE, None, None, note)
    for a, b in itertools.pairwise(curve):
        if a.psnr <= level <= b.psnr:
            part = (level - a.psnr) / (b.psnr - a.psnr)
            note = f"between {a.label} and {b.label}"
            where = Where.BETWEEN
            if b.psnr - a.psnr > _WIDE_DB:
                where = Where.WIDE
                note += f" ({b.psnr - a.psnr:.0f} dB apart: measure a knob in between)"
            speed, share = _between(a.speedup, b.speedup, part), _between(a.share, b.share, part)
            return Match(where, speed, share, note)
    return Match(Where.MEASURED, fast.speedup, fast.share, f"at {fast.label}")


def _between(a: float, b: float, part: float) -> float:
    return math.exp(math.log(a) * (1 - part) + math.log(b) * part)


def psnr_at(points: Sequence[Point], speedup: float) -> tuple[float, str] | None:
    """Quality of a series at a speed, and between which rows; None outside its range.

    A speed within 3 % of an end's counts as that end's: that is timing noise.
    """
    curve = envelope(points)
    for end in (curve[0], curve[-1]) if curve else ():
        if abs(math.log(speedup / end.speedup)) <= CLOSE_SPEED:
            return end.psnr, end.label
    for a, b in itertools.pairwise(curve):
        if b.speedup <= speedup <= a.speedup:
            width = math.log(a.speedup) - math.log(b.speedup)
            part = (math.log(a.speedup) - math.log(speedup)) / width if width else 0.0
            return a.psnr + (b.psnr - a.psnr) * part, f"between {b.label} and {a.label}"
    return None


def _match(points: Sequence[Point], level: float) -> Match:
    """A series' place at a level: by time where all its points have one, else by share alone."""
    timed = in_time(points)
    if len(timed) == len(points):
        return at_psnr(timed, level)
    match = at_psnr(by_share(points), level, timed=False)
    if match.share is None and match.where is not Where.ABOVE:
        return match
    note = f"speed-up not told: the timing was noisy; {match.note}"
    return Match(Where.NOISY, None, match.share, note)


def matched(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Every series' speed at `LEVELS` dB.

    Args:
        points: of all rows; those that skip nothing are left out.
    """
    groups: dict[str, list[Point]] = {}
    for point in points:
        if point.role in COMPARED and point.state not in (State.UNSKIPPED, State.UNTIMED):
            groups.setdefault(point.config.series, []).append(point)
    found = []
    for level in LEVELS:
        for series, members in groups.items():
            match = _match(members, level)
            found.append(
                {
                    "psnr": level,
                    "series": series,
                    "role": members[0].role,
                    "where": match.where,
                    "speedup": match.speedup,
                    "computed_share": match.share,
                    "note": match.note,
                }
            )
    return found


def dominated(points: Sequence[Point]) -> dict[str, str]:
    """Rows that another row beats in both speed and quality: id → id of the best such row.

    Args:
        points: of all rows; only those whose speed can be told are compared.
    """
    points = [p for p in in_time(points) if p.role in COMPARED]
    found = {}
    for point in points:
        better = [
            p
            for p in points
            if p.speedup >= point.speedup * (1 + CLOSE_SPEED) and p.psnr >= point.psnr + CLOSE_DB
        ]
        if better:
            found[point.id] = max(better, key=lambda p: p.psnr).id
    return found
