"""The Pareto plot as SVG: quality against speed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ditaccel.eval.report.load import Evaluation
from ditaccel.eval.report.markup import Markup, el
from ditaccel.eval.report.series import Mark, Style, floor, pareto_marks, series_styles
from ditaccel.eval.specs import Role

from ditaccel.errors import UsageError

# Above this PSNR two 8-bit pictures differ by less than one level almost everywhere.
TOP_DB = 60.0
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Frame:
    """Maps data to pixels.

    Attributes:
        width, height: of the drawing, in CSS pixels.
        left, right, top, bottom: edges of the plotting area.
        x_range, y_range: data limits.
    """

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        """Pixel column of a speed-up, kept inside the plot."""
        low, high = self.x_range
        share = (min(max(value, low), high) - low) / (high - low)
        return round(self.left + share * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """Pixel row of a PSNR, kept inside the plot."""
        low, high = self.y_range
        share = (min(max(value, low), high) - low) / (high - low)
        return round(self.bottom - share * (self.bottom - self.top), 1)


def _ticks(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def limits(
    points: Sequence[Mark], lowest: float | None
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The ranges of speed-up and PSNR that a plot shows.

    Args:
        points: all marks.
        lowest: PSNR between unrelated pictures, None where it is not known.
    """
    xs = [p.x for p in points] + [1.0]
    x_range = (min(min(xs) - 0.06, 0.9), max(xs) + 0.08 * (max(xs) - min(xs)) + 0.08)
    finite = [p.y for p in points if p.y < TOP_DB]
    top = max(finite, default=40.0)
    bottom = min([*finite, *(p.point.tail for p in points if p.point.tail < TOP_DB)], default=20.0)
    if lowest is not None and bottom - lowest < 10:
        bottom = min(bottom, lowest)
    clipped = any(p.y >= TOP_DB for p in points)
    return x_range, (bottom - 2.0, top + (5.0 if clipped else 2.5))


def marker_path(marker: str, x: float, y: float, r: float) -> str:
    """SVG path of a marker with centre (x, y) and radius r."""
    if marker == "square":
        return f"M{x - r:.1f} {y - r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}z"
    if marker == "circle":
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    sides, turn = {
        "triangle": (3, -90),
        "down": (3, 90),
        "diamond": (4, -90),
        "pentagon": (5, -90),
        "hexagon": (6, 0),
    }[marker]
    size = r * 1.25
    corners = [math.radians(turn + 360 * i / sides) for i in range(sides)]
    steps = [f"{x + size * math.cos(a):.1f} {y + size * math.sin(a):.1f}" for a in corners]
    return "M" + "L".join(steps) + "z"


def marker_svg(style: Style, x: float, y: float, r: float = 5.5) -> Markup:
    """One marker in the series' colour; peers are hollow."""
    return el(
        "path",
        d=marker_path(style.marker, x, y, r),
        cls="mark hollow" if style.role is Role.PEER else "mark",
        style=f"--c:var({style.variable})",
    )


def _free(box: Box, taken: Sequence[Box], frame: Frame) -> bool:
    x0, y0, x1, y1 = box
    if x0 < frame.left or x1 > frame.width or y0 < 0 or y1 > frame.bottom:
        return False
    return all(x1 < a or x0 > c or y1 < b or y0 > d for a, b, c, d in taken)


def _line_boxes(points: Sequence[tuple[Mark, Style]], frame: Frame) -> list[Box]:
    """Small boxes along the lines between neighbours of one series."""
    boxes = []
    for (a, _), (b, _) in itertools.pairwise(points):
        if a.point.config.series != b.point.config.series:
            continue
        x0, y0, x1, y1 = frame.x(a.x), frame.y(a.y), frame.x(b.x), frame.y(b.y)
        count = max(2, int(math.hypot(x1 - x0, y1 - y0) / 6))
        for i in range(1, count):
            x, y = x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count
            boxes.append((x - 2, y - 2, x + 2, y + 2))
    return boxes


def _place_labels(
    points: Sequence[tuple[Mark, Style]], frame: Frame, font: float, taken: list[Box]
) -> list[Markup]:
    """Label points where there is room; a point without room keeps its tooltip only."""
    taken += _line_boxes(points, frame)
    taken += [
        (
            frame.x(p.x) - 6,
            frame.y(p.y) - (16 if p.y >= TOP_DB else 6),
            frame.x(p.x) + 6,
            frame.y(p.y) + 6,
        )
        for p, _ in points
    ]
    labels = []
    for point, style in points:
        x, y = frame.x(point.x), frame.y(point.y)
        w = len(point.short) * font * 0.56
        offsets = ((9, -4), (9, font + 1), (-9 - w, -4), (-9 - w, font + 1), (-w / 2, -11))
        for dx, dy in (*offsets, (-w / 2, font + 10)):
            box = (x + dx - 2, y + dy - font, x + dx + w + 2, y + dy + 3)
            if _free(box, taken, frame):
                taken.append(box)
                labels.append(
                    el(
                        "text",
                        point.short,
                        x=round(x + dx, 1),
                        y=round(y + dy, 1),
                        cls="point-label",
                        style=f"--c:var({style.variable});font-size:{font}px",
                    )
                )
                break
    return labels


def _axes(frame: Frame, font: float, xlabel: str) -> list[Markup]:
    narrow = frame.width < 600
    parts = []
    size = f"font-size:{font}px"
    for value in _ticks(*frame.y_range, 5 if narrow else 7):
        y = frame.y(value)
        parts.append(el("line", x1=frame.left, x2=frame.right, y1=y, y2=y, cls="grid"))
        label = f"{value:g}"
        parts.append(
            el(
                "text", label, x=frame.left - 8, y=y + font / 3, cls="tick", text_anchor="end",
                style=size,
            )
        )  # fmt: skip
    for value in _ticks(*frame.x_range, 4 if narrow else 8):
        x = frame.x(value)
        parts.append(el("line", x1=x, x2=x, y1=frame.bottom, y2=frame.bottom + 5, cls="axis"))
        text = "dense 1×" if value == 1 else f"{value:g}×"
        parts.append(
            el(
                "text", text, x=x, y=frame.bottom + 9 + font, cls="tick",
                text_anchor="middle", style=size,
            )
        )  # fmt: skip
    parts.append(
        el("line", x1=frame.left, x2=frame.right, y1=frame.bottom, y2=frame.bottom, cls="axis")
    )
    middle = (frame.left + frame.right) / 2
    parts.append(
        el(
            "text", xlabel, x=middle, y=frame.height - 6, cls="axis-label", text_anchor="middle",
            style=size,
        )
    )  # fmt: skip
    parts.append(
        el(
            "text", "PSNR to dense, dB  ↑ closer", x=4, y=font + 2, cls="axis-label", style=size,
        )
    )  # fmt: skip
    return parts


def _references(frame: Frame, lowest: float | None, font: float, taken: list[Box]) -> list[Markup]:
    x = frame.x(1.0)
    size = f"font-size:{font}px"
    parts = [el("line", x1=x, x2=x, y1=frame.top, y2=frame.bottom, cls="reference")]
    if lowest is not None:
        inside = frame.y_range[0] < lowest
        row = frame.y(lowest)
        if inside:
            parts.append(el("line", x1=frame.left, x2=frame.right, y1=row, y2=row, cls="reference"))
        tail = "" if inside else " (below this plot)"
        text = f"unrelated picture (other seed): {lowest:.1f} dB{tail}"
        anchor = row - 5 if inside else frame.bottom - 8
        width = len(text) * font * 0.55
        parts.append(
            el(
                "text", text, x=frame.right, y=anchor, cls="note", text_anchor="end", style=size
            )
        )  # fmt: skip
        taken.append((frame.right - width, anchor - font, frame.right, anchor + 3))
    return parts


def _series(points: Sequence[Mark], style: Style, frame: Frame) -> list[Markup]:
    colour = f"--c:var({style.variable})"
    path = " ".join(f"{frame.x(p.x)},{frame.y(p.y)}" for p in points)
    parts = []
    if len(points) > 1:
        parts.append(el("polyline", points=path, cls=f"series {style.role}", style=colour))
    for p in points:
        x, y = frame.x(p.x), frame.y(p.y)
        low, high = (frame.x(speed) for speed in p.point.spread)
        wide = {"x1": low, "x2": high, "y1": y, "y2": y}
        parts.append(el("line", cls="whisker", style=colour, **wide))
        if p.y < TOP_DB:
            parts.append(
                el(
                    "line", x1=x, x2=x, y1=y, y2=frame.y(p.point.tail), cls="whisker", style=colour
                )
            )  # fmt: skip
    for p in points:
        x, y = frame.x(p.x), frame.y(p.y)
        inner: list[Markup] = [el("circle", cx=x, cy=y, r=14, cls="hit"), marker_svg(style, x, y)]
        if p.y >= TOP_DB:
            inner.append(
                el("path", d=f"M{x - 4} {y - 10}l4 -6l4 6", cls="beyond", style=colour),
            )
        label = p.tip.replace("\n", ", ")
        parts.append(
            el(
                "g",
                inner,
                cls="point noisy" if p.noisy else "point",
                tabindex=0,
                role="img",
                aria_label=label,
                data_tip=p.tip,
            )
        )
    return parts


def xlabel(evaluation: Evaluation) -> str:
    """What the speed axis says."""
    return "speed-up (dense = 1×)" + ("" if evaluation.trusted else ", noisy timing")


def pareto_svg(evaluation: Evaluation, width: int, height: int, font: float = 12.5) -> Markup:
    """The Pareto plot as SVG; colours come from the page's CSS custom properties.

    Args:
        evaluation: what to plot.
        width: of the drawing in CSS pixels.
        height: of the drawing in CSS pixels.
        font: size of the text in CSS pixels.

    Raises:
        UsageError: no configuration has both a speed-up and a PSNR.
    """
    series = pareto_marks(evaluation)
    everything = [p for points in series.values() for p in points]
    if not everything:
        raise UsageError("no configuration besides dense has a speed-up and a PSNR to plot")
    styles = series_styles(evaluation)
    lowest = floor(evaluation)
    x_range, y_range = limits(everything, lowest)
    left, bottom = 3.2 * font, height - 4.2 * font
    frame = Frame(width, height, left, width - 10, 3.4 * font, bottom, x_range, y_range)
    taken: list[Box] = []
    body = [*_axes(frame, font, xlabel(evaluation)), *_references(frame, lowest, font, taken)]
    drawn = sorted(series, key=lambda name: styles[name].role is not Role.FEWER_STEPS)
    for name in drawn:
        body.append(el("g", _series(series[name], styles[name], frame), data_series=name))
    labelled = [(p, styles[name]) for name in drawn for p in series[name]]
    body += _place_labels(labelled, frame, font - 1.5, taken)
    summary = (
        f"Scatter plot of {len(everything)} configurations in {len(series)} series: speed-up "
        "against PSNR to dense. The table below holds the same figures."
    )
    return el("svg", body, viewBox=f"0 0 {width} {height}", role="group", aria_label=summary)
