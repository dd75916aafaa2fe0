"""The Pareto plot where it is used: on a page with its legend, and as a PNG for a README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ditaccel.eval.metrics.psnr import CAP
from ditaccel.eval.report.load import Evaluation
from ditaccel.eval.report.markup import Markup, breakable, el
from ditaccel.eval.report.plots import TOP_DB, limits, marker_svg, pareto_svg, xlabel
from ditaccel.eval.report.series import Mark, Style, floor, pareto_marks, series_styles
from ditaccel.eval.specs import Role

from ditaccel.errors import UsageError


def _legend(evaluation: Evaluation) -> Markup:
    words = {Role.FEWER_STEPS: " (baseline)", Role.METHOD: "", Role.PEER: " (other tool)"}
    marks = pareto_marks(evaluation)
    items = []
    for name, style in series_styles(evaluation).items():
        if name not in marks:
            continue
        swatch = el(
            "svg",
            el("line", x1=0, x2=34, y1=9, y2=9, cls=f"series {style.role}",
               style=f"--c:var({style.variable})"),
            marker_svg(style, 17, 9, 5),
            viewBox="0 0 34 18", width=34, height=18, aria_hidden="true",
        )  # fmt: skip
        text = name + words[style.role]
        items.append(
            el(
                "li",
                el("button", swatch, el("span", breakable(text)), type="button", data_series=name),
            )
        )
    return el("ul", items, cls="key")


def pareto(evaluation: Evaluation, height: int) -> Markup:
    """Legend and plot.

    Args:
        evaluation: what to plot.
        height: of the wide drawing in CSS pixels.

    Raises:
        UsageError: no configuration has both a speed-up and a PSNR.
    """
    return el(
        "div",
        _legend(evaluation),
        el("div", pareto_svg(evaluation, 1080, height, 13), cls="plot wide"),
        el("div", pareto_svg(evaluation, 400, 440, 12.5), cls="plot narrow"),
        cls="pareto",
    )


_SYMBOLS = {
    "circle": "o",
    "triangle": "^",
    "diamond": "D",
    "down": "v",
    "pentagon": "p",
    "hexagon": "h",
    "square": "s",
}
_LINES = {Role.FEWER_STEPS: "--", Role.METHOD: "-", Role.PEER: ":"}
_THIN: dict[str, Any] = {"color": "#888", "linewidth": 1, "linestyle": (0, (2, 3))}


def pareto_png(evaluation: Evaluation, path: str | Path) -> Path:
    """The Pareto plot as a PNG on white, for pages that cannot hold the report.

    Raises:
        UsageError: no row has both a speed-up and a PSNR, or `path` cannot be written.
    """
    from matplotlib.figure import Figure

    series, styles = pareto_marks(evaluation), series_styles(evaluation)
    everything = [mark for marks in series.values() for mark in marks]
    if not everything:
        raise UsageError("no configuration besides dense has a speed-up and a PSNR to plot")
    lowest = floor(evaluation)
    x_range, y_range = limits(everything, lowest)
    figure = Figure(figsize=(9.6, 4.6), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for name, marks in series.items():
        _draw_series(axes, name, marks, styles[name], y_range[1])
    axes.axvline(1.0, **_THIN)
    if lowest is not None and lowest > y_range[0]:
        axes.axhline(lowest, **_THIN)
        note = f"unrelated picture (other seed): {lowest:.1f} dB"
        _note(axes, note, (x_range[1], lowest), (-6, 4), "#555", fontsize=8, ha="right")
    axes.set(xlim=x_range, ylim=y_range)
    axes.set_xlabel(xlabel(evaluation))
    axes.set_ylabel("PSNR to dense (dB)")
    axes.grid(axis="y", color="#e5e5e5")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=9, loc="outside right upper")
    path = Path(path)
    try:
        figure.savefig(path, facecolor="white")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {path} ({error}): choose another file") from None
    return path


def _draw_series(axes: Any, name: str, marks: Sequence[Mark], style: Style, top: float) -> None:
    """One curve; what lies above the plot is drawn at its top and says what it is."""
    axes.plot(
        [mark.x for mark in marks],
        [min(mark.y, top) for mark in marks],
        _LINES[style.role],
        color=style.colour,
        marker=_SYMBOLS[style.marker],
        markerfacecolor="white" if style.role is Role.PEER else style.colour,
        markersize=6,
        linewidth=2,
        clip_on=False,
        label=name,
    )
    for mark in marks:
        if mark.noisy:
            place = (mark.x, min(mark.y, top))
            _note(axes, "noisy", place, (0, -12), "#777", fontsize=7, ha="center")
        if mark.y >= TOP_DB:
            words = "identical" if mark.y >= CAP else f"{mark.y:.0f} dB"
            _note(axes, words, (mark.x, top), (9, -3), style.colour, fontsize=8)


def _note(
    axes: Any,
    words: str,
    place: tuple[float, float],
    away: tuple[float, float],
    colour: str,
    **looks: Any,
) -> None:
    axes.annotate(words, place, xytext=away, textcoords="offset points", color=colour, **looks)
