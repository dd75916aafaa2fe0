"""Error against density: one curve per map and rest, as a table and as a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ditaccel.io.files import write_atomically

from .points import PUBLISHED

Row = dict[str, Any]
_LEAST = 1e-12  # an error of 0 has no logarithm
_COLUMNS = ("mass", "planning", "kernel", "overlap")
_MARKERS = "os^vDP*XpHd<>8"


@dataclass(frozen=True)
class Curve:
    """The points of one map and rest, from the sparsest to the densest.

    Attributes:
        method: name of the map's method.
        setting: see `Point`.
        rest: see `Point`.
        precision: see `Point`.
        rows: of the points.
    """

    method: str
    setting: str
    rest: str
    precision: str
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """For people."""
        words = [f"{self.method} as published" if self.setting == PUBLISHED else self.method]
        words += [] if self.is_published else [self.rest]
        return " + ".join(filter(None, [*words, self.precision]))

    @property
    def is_published(self) -> bool:
        """Whether it is a map of the literature with nothing for the rest."""
        return self.rest in ("nothing", "as published")

    def at(self, density: float, figure: str) -> float | None:
        """A figure at a density, between the points beside it; None where the curve does not reach.

        Errors are interpolated in their logarithm, all in the logarithm of the density.
        """
        rows = [row for row in self.rows if row[figure] is not None]
        for low, high in pairwise(rows):
            if low["density"] <= density <= high["density"]:
                return _between(low, high, density, figure)
        for row in rows:
            if math.isclose(row["density"], density, rel_tol=1e-6):
                return float(row[figure])
        return None


def _between(low: Row, high: Row, density: float, figure: str) -> float:
    a, b = float(low[figure]), float(high[figure])
    width = math.log(high["density"] / low["density"])
    part = math.log(density / low["density"]) / width if width else 0.0
    if figure != "error":
        return a + part * (b - a)
    a, b = math.log(max(a, _LEAST)), math.log(max(b, _LEAST))
    return math.exp(a + part * (b - a))


def curves_of(rows: Sequence[Row]) -> list[Curve]:
    """The curves of rows; those without figures are left out."""
    found: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        if row["error"] is not None:
            key = (row["method"], row["setting"], row["rest"], row["precision"])
            found.setdefault(key, []).append(row)
    return [
        Curve(*key, tuple(sorted(own, key=lambda row: float(row["density"]))))
        for key, own in found.items()
    ]


def best_at(curves: Sequence[Curve], density: float) -> Curve | None:
    """The curve of the least error at a density, None where none reaches it."""
    reached = [(c.at(density, "error"), c) for c in curves]
    known = [(error, i) for i, (error, _) in enumerate(reached) if error is not None]
    return curves[min(known)[1]] if known else None


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"


def table(curves: Sequence[Curve], densities: Sequence[float]) -> str:
    """All curves for a terminal: errors at each density, the rest at the middle one."""
    middle = densities[(len(densities) - 1) // 2]
    width = max(len(c.name) for c in curves)
    heads = [f"at {_percent(d, 0)} %" for d in densities]
    shown = [f"{name} %" for name in _COLUMNS]
    lines = [
        f"Relative L2 error in %; {', '.join(_COLUMNS)} at {_percent(middle, 0)} % density "
        "(planning and kernel: of dense SDPA's time)",
        " ".join([f"{'map and rest':<{width}}", *(f"{h:>8}" for h in (*heads, *shown))]),
    ]
    best = {density: best_at(curves, density) for density in densities}
    for curve in curves:
        cells = []
        for density in densities:
            cell = _percent(curve.at(density, "error"), 2)
            cells.append(f"{cell + ('*' if best[density] is curve else ''):>8}")
        cells += [f"{_percent(curve.at(middle, name)):>{max(8, len(name) + 2)}}"
                  for name in _COLUMNS]  # fmt: skip
        lines.append(" ".join([f"{curve.name:<{width}}", *cells]))
    return "\n".join(lines)


def verdicts(curves: Sequence[Curve], densities: Sequence[float]) -> list[str]:
    """Per density: the best map and rest, and the best published map with nothing for the rest."""
    lines = []
    plain = [curve for curve in curves if curve.is_published]
    for density in densities:
        best, published = best_at(curves, density), best_at(plain, density)
        if best is None:
            lines.append(f"at {_percent(density, 0)} %: no curve reaches this density")
            continue
        error = best.at(density, "error")
        line = f"at {_percent(density, 0)} %: {best.name} ({_percent(error, 2)} %)"
        if published is not None:
            other = published.at(density, "error")
            assert error is not None and other is not None
            line += (
                f"; the best map with nothing for its rest: {published.name} "
                f"({_percent(other, 2)} %); ratio {error / max(other, _LEAST):.2f}"
            )
        lines.append(line)
    return lines


def draw(curves: Sequence[Curve], path: Path, title: str) -> None:
    """A panel per rest, a colour and a marker per method, as a PNG on white."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    panels: dict[str, list[Curve]] = {}
    for curve in curves:
        label = "as published" if curve.setting == PUBLISHED else f"rest: {curve.rest}"
        panels.setdefault(" ".join(filter(None, [label, curve.precision])), []).append(curve)
    names = list(dict.fromkeys(curve.method for curve in curves))
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    wide = min(2, len(panels))
    tall = math.ceil(len(panels) / wide)
    figure = Figure(figsize=(6.2 * wide + 2.2, 4.6 * tall + 0.4), dpi=110, layout="constrained")
    grid = figure.subplots(tall, wide, sharex=True, sharey=True, squeeze=False)
    handles: dict[str, Any] = {}
    for axes, (label, own) in zip(grid.flat, panels.items(), strict=False):
        for curve in own:
            place = names.index(curve.method)
            (line,) = axes.plot(
                [100 * row["density"] for row in curve.rows],
                [100 * max(row["error"], _LEAST) for row in curve.rows],
                color=colours[2 * place % 20 + place // 10 % 2],
                marker=_MARKERS[place % len(_MARKERS)],
                markersize=5,
                linewidth=1.4,
            )
            handles.setdefault(curve.method, line)
        axes.set_title(label, fontsize=10)
        axes.set(xscale="log", yscale="log")
        axes.grid(which="both", color="#e8e8e8", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelbottom=True, labelleft=True)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    _ticks(grid, curves)
    figure.supxlabel("density: computed share of the attention matrix, %", fontsize=10)
    figure.supylabel("relative L2 error of the output, %", fontsize=10)
    figure.suptitle(title, fontsize=11)
    ordered = [name for name in names if name in handles]
    figure.legend(
        [handles[name] for name in ordered],
        ordered,
        loc="outside right upper",
        frameon=False,
        fontsize=9,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def _ticks(grid: Any, curves: Sequence[Curve]) -> None:
    """Plain numbers on both axes, and no room for errors that only rounding leaves."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    every = [row for curve in curves for row in curve.rows]
    errors = [100 * row["error"] for row in every if row["density"] < 0.95] or [1.0]
    densities = [100 * row["density"] for curve in curves for row in curve.rows]
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    steps = [x for x in (1, 2, 3, 5, 10, 20, 30, 50, 100) if min(densities) <= x <= 100]
    for axes in grid.flat:
        axes.set_ylim(max(0.05, 0.8 * min(errors)), max(1.2 * max(errors), 1.0))
        axes.set_xlim(0.9 * min(densities), 105)
        axes.xaxis.set_major_locator(FixedLocator(steps))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(plain)
        axes.yaxis.set_major_formatter(plain)
