"""Speed against quality: matched-quality speeds, dominance, and verdicts in plain words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .metrics.psnr import CAP

LEVELS = (25.0, 30.0, 35.0, 40.0)
# Differences below are within what one seed or a busy machine changes.
_CLOSE_DB = 0.5
_CLOSE_SPEED = 0.03
_DROP = 0.05
_WIDE_DB = 8.0


@dataclass(frozen=True)
class Point:
    """One row in the plane of speed and quality."""

    id: str
    label: str
    series: str
    role: str
    knob: float | None
    speedup: float
    psnr: float
    share: float


def points_of(configs: Sequence[dict[str, Any]], rows: dict[str, Any]) -> list[Point]:
    """The rows that have figures, in the run's order."""
    return [
        Point(
            c["id"],
            c["label"],
            c["series"],
            c["role"],
            c.get("knob"),
            float(rows[c["id"]]["speedup"]["median"]),
            float(rows[c["id"]]["psnr"]["mean"]),
            float(rows[c["id"]]["computed_share"]),
        )
        for c in configs
        if c["id"] in rows
    ]


def envelope(points: Sequence[Point]) -> list[Point]:
    """The points that no other point beats in both speed and quality, fastest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speedup, -p.psnr)):
        if not kept or point.psnr > kept[-1].psnr:
            kept.append(point)
    return kept


@dataclass(frozen=True)
class Match:
    """A place on a curve, or why there is none."""

    speedup: float | None
    share: float | None
    note: str


def at_psnr(points: Sequence[Point], level: float) -> Match:
    """Speed of a series at a quality, on its envelope.

    The logarithm of speed (and of the computed share) runs linearly with PSNR between two measured
    points; nothing is extrapolated.

    Args:
        points: of one series.
        level: PSNR in dB.
    """
    curve = envelope(points)
    if not curve:
        return Match(None, None, "no points")
    fast, fine = curve[0], curve[-1]
    if level > fine.psnr:
        return Match(None, None, f"does not reach {level:g} dB (best {fine.psnr:.1f} dB)")
    if level < fast.psnr:
        note = f"all points lie above: x{fast.speedup:.2f} already at {fast.psnr:.1f} dB"
        return Match(None, None, note)
    for a, b in itertools.pairwise(curve):
        if a.psnr <= level <= b.psnr:
            part = (level - a.psnr) / (b.psnr - a.psnr)
            note = f"between {a.label} and {b.label}"
            if b.psnr - a.psnr > _WIDE_DB:
                note += f" ({b.psnr - a.psnr:.0f} dB apart: measure a knob in between)"
            return Match(
                _between(a.speedup, b.speedup, part), _between(a.share, b.share, part), note
            )
    return Match(fast.speedup, fast.share, f"at {fast.label}")


def _between(a: float, b: float, part: float) -> float:
    return math.exp(math.log(a) * (1 - part) + math.log(b) * part)


def psnr_at(points: Sequence[Point], speedup: float) -> tuple[float, str] | None:
    """Quality of a series at a speed, and between which rows; None outside its range.

    A speed within 3 % of an end's counts as that end's: that is timing noise.
    """
    curve = envelope(points)
    for end in (curve[0], curve[-1]) if curve else ():
        if abs(math.log(speedup / end.speedup)) <= _CLOSE_SPEED:
            return end.psnr, end.label
    for a, b in itertools.pairwise(curve):
        if b.speedup <= speedup <= a.speedup:
            width = math.log(a.speedup) - math.log(b.speedup)
            part = (math.log(a.speedup) - math.log(speedup)) / width if width else 0.0
            return a.psnr + (b.psnr - a.psnr) * part, f"between {b.label} and {a.label}"
    return None


def matched(configs: Sequence[dict[str, Any]], rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Every series' speed at `LEVELS` dB.

    Args:
        configs: of `run.json`.
        rows: `configs` of the summary.
    """
    groups: dict[str, list[Point]] = {}
    for point in points_of(configs, rows):
        if point.role in ("fewer_steps", "method", "peer"):
            groups.setdefault(point.series, []).append(point)
    found = []
    for level in LEVELS:
        for series, points in groups.items():
            match = at_psnr(points, level)
            found.append(
                {
                    "psnr": level,
                    "series": series,
                    "role": points[0].role,
                    "speedup": match.speedup,
                    "computed_share": match.share,
                    "note": match.note,
                }
            )
    return found


def dominated(configs: Sequence[dict[str, Any]], rows: dict[str, Any]) -> dict[str, str]:
    """Rows that another row beats in both speed and quality: id → id of the best such row."""
    points = [p for p in points_of(configs, rows) if p.role in ("fewer_steps", "method", "peer")]
    found = {}
    for point in points:
        better = [
            p
            for p in points
            if p.speedup >= point.speedup * (1 + _CLOSE_SPEED) and p.psnr >= point.psnr + _CLOSE_DB
        ]
        if better:
            found[point.id] = max(better, key=lambda p: p.psnr).id
    return found


def _cost(row: dict[str, Any], dense: dict[str, Any]) -> str:
    """What the prompt accuracy lost, where it lost something."""
    lost = []
    for name, value in row.get("accuracy", {}).items():
        full = dense.get("accuracy", {}).get(name)
        if value is not None and full is not None and full - value >= _DROP:
            lost.append(f"{name} {full:.0%} -> {value:.0%}")
    return f" Prompt accuracy falls: {', '.join(lost)}." if lost else ""


def _verdict(point: Point, fewer: Sequence[Point], floor: float | None) -> str:
    quality = f"at {point.psnr:.1f} dB" if point.psnr < CAP else "and identical to dense"
    head = f"{point.label}: x{point.speedup:.2f} {quality}"
    if floor is not None and point.psnr <= floor + 1.0:
        return f"{head}: as far from dense as another seed is; the picture is another one."
    if point.speedup < 1 + _CLOSE_SPEED and point.psnr >= CAP:
        return (
            f"{head}: nothing was skipped, and its warning says why (too few steps, too short a "
            "sequence); else loosen its options."
        )
    if point.speedup < 1 + _CLOSE_SPEED:
        return f"{head}: no faster than dense; loosen its options, or leave it off."
    if not fewer:
        return f"{head}: no fewer-steps row to compare with."
    here = psnr_at(fewer, point.speedup)
    if here is not None:
        level, where = here
        gain = point.psnr - level
        if gain >= _CLOSE_DB:
            return (
                f"{head}: {gain:.1f} dB better than fewer steps at the same time "
                f"({level:.1f} dB, {where})."
            )
        if gain > -_CLOSE_DB:
            return f"{head}: no better than fewer steps at the same time ({level:.1f} dB, {where})."
        best = min(fewer, key=lambda p: abs(math.log(p.speedup / point.speedup)))
        return (
            f"{head}: fewer steps would serve you better: {best.label} gives {best.psnr:.1f} dB at "
            f"x{best.speedup:.2f} ({level:.1f} dB at the same time, {where})."
        )
    slow, fast = envelope(fewer)[-1], envelope(fewer)[0]
    if point.speedup > fast.speedup:
        than = "better" if point.psnr > fast.psnr + _CLOSE_DB else "other"
        if point.psnr < fast.psnr - _CLOSE_DB:
            than = "worse"
        return (
            f"{head}: faster than every fewer-steps row measured; {than} quality than the fastest "
            f"({fast.label}: x{fast.speedup:.2f} at {fast.psnr:.1f} dB)."
        )
    if slow.psnr >= point.psnr:
        return (
            f"{head}: fewer steps would serve you better: {slow.label} gives {slow.psnr:.1f} dB at "
            f"x{slow.speedup:.2f}."
        )
    return (
        f"{head}: {point.psnr - slow.psnr:.1f} dB better than the best that fewer steps gave "
        f"({slow.label}: x{slow.speedup:.2f} at {slow.psnr:.1f} dB), but slower than that."
    )


def verdicts(configs: Sequence[dict[str, Any]], rows: dict[str, Any]) -> list[str]:
    """One plain line for every method and peer: is it better than just taking fewer steps?

    Args:
        configs: of `run.json`.
        rows: `configs` of the summary.
    """
    points = points_of(configs, rows)
    fewer = [p for p in points if p.role == "fewer_steps"]
    other = next((p.psnr for p in points if p.role == "other_seed"), None)
    dense: dict[str, Any] = next((rows[p.id] for p in points if p.role == "dense"), {})
    return [
        _verdict(p, fewer, other) + _cost(rows[p.id], dense)
        for p in points
        if p.role in ("method", "peer")
    ]
