"""Which colour, marker and line a series has, and the points it draws in the Pareto plot."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ditaccel.eval.measure.pairs import State
from ditaccel.eval.metrics.psnr import CAP
from ditaccel.eval.report.load import Evaluation
from ditaccel.eval.specs import COMPARED, JUDGED, Role, RunConfig
from ditaccel.eval.summary.pareto import Point

# Okabe and Ito's palette, told apart under the common kinds of colour blindness; every series has
# its own marker too. Each entry: on a light ground, on a dark ground.
PALETTE = (
    ("#0072b2", "#4fb0ee"),
    ("#c94f00", "#ff8b4d"),
    ("#00805d", "#2fcf9f"),
    ("#a8457f", "#ec9cca"),
    ("#a06a00", "#f2b83f"),
    ("#5a4fcf", "#a79ff8"),
)
BASELINE = ("#2b2b2b", "#e8e8e8")
MARKERS = ("circle", "triangle", "diamond", "down", "pentagon", "hexagon")


@dataclass(frozen=True)
class Style:
    """Looks of one series.

    Attributes:
        slot: index into `PALETTE`, or -1 for the fewer-steps baseline.
        marker: a name of `MARKERS`, or "square" for the baseline.
        role: of its rows; peers are drawn hollow and dotted.
    """

    slot: int
    marker: str
    role: Role

    @property
    def variable(self) -> str:
        """CSS custom property that holds the colour."""
        return "--baseline" if self.slot < 0 else f"--s{self.slot}"

    @property
    def colour(self) -> str:
        """Colour on a light ground."""
        return BASELINE[0] if self.slot < 0 else PALETTE[self.slot][0]


@dataclass(frozen=True)
class Mark:
    """A row in the plot: x is the speed-up (dense is 1), y is PSNR to dense in dB.

    Attributes:
        point: the row's figures.
        short: what tells its label from the others of its series.
        more: its other figures of quality, in words.
    """

    point: Point
    short: str
    more: str = ""

    @property
    def x(self) -> float:
        """Speed-up."""
        return self.point.speedup

    @property
    def y(self) -> float:
        """Mean PSNR."""
        return self.point.psnr

    @property
    def noisy(self) -> bool:
        """Whether the speed-up is uncertain."""
        return self.point.state is State.NOISY

    @property
    def tip(self) -> str:
        """What a tooltip says, one fact per line."""
        point, (low, high) = self.point, self.point.spread
        quality = "identical to dense" if point.psnr >= CAP else f"PSNR {point.psnr:.1f} dB"
        tail = "" if point.psnr >= CAP else f" (p5 {point.tail:.1f})"
        count = f"{point.samples} sample{'s' * (point.samples != 1)}"
        lines = [
            point.label,
            f"{point.speedup:.2f}× dense's speed (middle half {low:.2f} to {high:.2f})"
            f"{', noisy' if self.noisy else ''}",
            f"{quality}{tail}, {count}",
            self.more,
        ]
        return "\n".join(filter(None, lines))


def series_styles(evaluation: Evaluation) -> dict[str, Style]:
    """Looks by series name, in the order of the run; the baseline comes first."""
    styles: dict[str, Style] = {}
    for config in evaluation.configs:
        if config.role is Role.FEWER_STEPS:
            styles.setdefault(config.series, Style(-1, "square", config.role))
    slot = 0
    for config in evaluation.configs:
        if config.role in JUDGED and config.series not in styles:
            index = slot % len(PALETTE)
            marker = MARKERS[(slot + slot // len(PALETTE)) % len(MARKERS)]
            styles[config.series] = Style(index, marker, config.role)
            slot += 1
    return styles


def _common(texts: list[str]) -> str:
    """The longest beginning that all texts share."""
    first, last = min(texts), max(texts)
    length = next((i for i, c in enumerate(first) if last[i : i + 1] != c), len(first))
    return first[:length]


def short_labels(labels: list[str], series: str) -> list[str]:
    """What tells the labels of one series apart: `N=3` of `TaylorSeer N=3`.

    Args:
        labels: of all configurations of the series.
        series: its name, cut off where a label stands alone.
    """
    if len(set(labels)) < 2:
        cut = [text.removeprefix(series).strip(" ,:") or text for text in labels]
        return [text if len(text) <= 24 else text[:23] + "…" for text in cut]
    head = _common(labels)
    head = head[: max(head.rfind(mark) for mark in " :,+") + 1]
    tail = _common([text[len(head) :][::-1] for text in labels])[::-1]
    at = min((i for mark in " ,+" if (i := tail.find(mark)) >= 0), default=len(tail))
    tail = tail[at:]
    if not head.strip() or series == "fewer steps":
        return labels
    return [text[len(head) : len(text) - len(tail)] for text in labels]


def pareto_marks(evaluation: Evaluation) -> dict[str, list[Mark]]:
    """Marks by series, sorted by speed-up; rows without a speed-up are left out."""
    found: dict[str, list[Mark]] = {}
    for series in series_styles(evaluation):
        members = [c for c in evaluation.configs if c.series == series]
        labels = short_labels([c.label for c in members], series)
        short = dict(zip((c.id for c in members), labels, strict=True))
        marks = []
        for point in evaluation.points:
            if point.id in short and point.role in COMPARED and math.isfinite(point.speedup):
                noisy = " (noisy)" if point.state is State.NOISY else ""
                more = _other_figures(evaluation, point.config)
                marks.append(Mark(point, short[point.id] + noisy, more))
        if marks:
            found[series] = sorted(marks, key=lambda mark: mark.x)
    return found


def _other_figures(evaluation: Evaluation, config: RunConfig) -> str:
    """What other metrics than the plot's own come to, as far as they have one number."""
    parts = []
    for metric in evaluation.metrics:
        for figure in metric.numbers() if metric.figures is None else ():
            value = evaluation.number(config, *metric.path(figure))
            if value is not None:
                parts.append(f"{figure.title} {metric.write(figure, value)}")
    return ", ".join(parts)


def floor(evaluation: Evaluation) -> float | None:
    """Mean PSNR between unrelated pictures (dense with another seed), where the run has it."""
    found = (point.psnr for point in evaluation.points if point.role is Role.OTHER_SEED)
    return next(found, None)
