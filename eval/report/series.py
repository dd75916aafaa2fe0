"""Which colour, marker and line a series has, and the points it draws in the Pareto plot."""

from __future__ import annotations

from dataclasses import dataclass

from ditaccel.eval.measure.pairs import State
from ditaccel.eval.report.load import Config, Evaluation

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
PLOTTED = ("fewer_steps", "method", "peer")


@dataclass(frozen=True)
class Style:
    """Looks of one series.

    Attributes:
        slot: index into `PALETTE`, or -1 for the fewer-steps baseline.
        marker: a name of `MARKERS`, or "square" for the baseline.
        role: "fewer_steps", "method" or "peer"; peers are drawn hollow and dotted.
    """

    slot: int
    marker: str
    role: str

    @property
    def variable(self) -> str:
        """CSS custom property that holds the colour."""
        return "--baseline" if self.slot < 0 else f"--s{self.slot}"

    @property
    def colour(self) -> str:
        """Colour on a light ground."""
        return BASELINE[0] if self.slot < 0 else PALETTE[self.slot][0]


@dataclass(frozen=True)
class Point:
    """One configuration in the plot: x = speed-up (dense = 1), y = PSNR to dense in dB.

    `short` is what tells its label from the others of its series.
    """

    config: Config
    x: float
    y: float
    x_low: float
    x_high: float
    y_low: float
    samples: int
    short: str
    noisy: bool = False

    @property
    def tip(self) -> str:
        """What a tooltip says, one fact a line."""
        quality = "identical to dense" if self.y >= 99 else f"PSNR {self.y:.1f} dB"
        tail = "" if self.y >= 99 else f" (p5 {self.y_low:.1f})"
        count = f"{self.samples} sample{'s' * (self.samples != 1)}"
        return (
            f"{self.config.label}\n{self.x:.2f}× dense's speed"
            f" (middle half {self.x_low:.2f} to {self.x_high:.2f})"
            f"{', noisy' if self.noisy else ''}\n{quality}{tail}, {count}"
        )


def series_styles(evaluation: Evaluation) -> dict[str, Style]:
    """Looks by series name, in the order of the run; the baseline comes first."""
    styles: dict[str, Style] = {}
    for config in evaluation.configs:
        if config.role == "fewer_steps":
            styles.setdefault(config.series, Style(-1, "square", config.role))
    slot = 0
    for config in evaluation.configs:
        if config.role in ("method", "peer") and config.series not in styles:
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


def pareto_points(evaluation: Evaluation) -> dict[str, list[Point]]:
    """Points by series, sorted by speed-up; configurations without both figures are left out."""
    points: dict[str, list[Point]] = {series: [] for series in series_styles(evaluation)}
    short: dict[str, str] = {}
    for series in points:
        members = [c for c in evaluation.configs if c.series == series]
        labels = short_labels([c.label for c in members], series)
        short |= dict(zip((c.id for c in members), labels, strict=True))
    for config in evaluation.configs:
        if config.role not in PLOTTED:
            continue
        x = evaluation.number(config, "speedup", "median")
        y = evaluation.number(config, "psnr", "mean")
        if x is None or y is None:
            continue
        low, high = (evaluation.number(config, "speedup", q) for q in ("p25", "p75"))
        p5 = evaluation.number(config, "psnr", "p5")
        noisy = evaluation.state(config) is State.NOISY
        points[config.series].append(
            Point(
                config,
                x,
                y,
                x if low is None else low,
                x if high is None else high,
                y if p5 is None else p5,
                int(evaluation.number(config, "n") or 0),
                short[config.id] + (" (noisy)" if noisy else ""),
                noisy,
            )
        )
    return {series: sorted(ps, key=lambda p: p.x) for series, ps in points.items() if ps}


def floor(evaluation: Evaluation) -> float | None:
    """Mean PSNR between unrelated pictures (dense with another seed), where the run has it."""
    values = [
        evaluation.number(config, "psnr", "mean")
        for config in evaluation.configs
        if config.role == "other_seed"
    ]
    return values[0] if values else None
