"""The figures of a row: which there are, what their cells say, and how to get the missing.

Speed and cost stand here; what a metric comes to, its own file says (`ditaccel.eval.metrics`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ditaccel.eval.measure.pairs import State
from ditaccel.eval.metrics.base import Figure, Metric, Per, Shown, Unit
from ditaccel.eval.report.load import Evaluation
from ditaccel.eval.specs import Role, RunConfig


@dataclass(frozen=True)
class Column:
    """One figure.

    Attributes:
        key: its name in `not_available`.
        title: header.
        path: where it stands in a configuration's summary.
        text: number -> what the cell says.
        about: what the header's tooltip says.
        spread: keys beside `path[-1]` that give the range [low, high].
        shown: the smallest table that has it.
        beside: path of a figure next to which the column stands, if only with dashes.
        error: path of the figure's standard error, which is shown where there is no range.
        enough: below so many samples the figure is flagged.
        few: what the flag says.
        unit: what it counts, where its text does not say so.
    """

    key: str
    title: str
    path: tuple[str, ...]
    text: Callable[[float], str]
    about: str
    spread: tuple[str, str] | None = None
    shown: Shown = Shown.FILE
    beside: tuple[str, ...] = ()
    error: tuple[str, ...] = ()
    enough: int = 0
    few: str = ""
    unit: str = ""


def _times(value: float) -> str:
    return f"{value:.2f}×"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _bytes(value: float) -> str:
    if value >= 2**30:
        return f"{value / 2**30:.2f} GiB"
    return f"{value / 2**20:.0f} MiB" if value >= 10 * 2**20 else f"{value / 2**10:.0f} KiB"


SPREAD = ("p10", "p90")
QUARTILES = ("p25", "p75")
_COST = (
    Column("n", "n", ("n",), lambda v: f"{v:.0f}", "samples: prompts × seeds", shown=Shown.PAGE),
    Column(
        "speedup",
        "speed-up",
        ("speedup", "median"),
        _times,
        "seconds of a paired dense run / its seconds; median [p25, p75] of the samples. Where "
        "other work ran on the machine, process time decides",
        QUARTILES,
        Shown.TERMINAL,
    ),
    Column(
        "seconds",
        "seconds",
        ("seconds", "median"),
        _seconds,
        "wall-clock of one pipeline call; median [p10, p90]",
        SPREAD,
    ),
    Column(
        "computed_share",
        "computed",
        ("computed_share",),
        _percent,
        "block calls run / block calls of dense, weighted by parameters",
        shown=Shown.TERMINAL,
    ),
    Column(
        "efficiency",
        "efficiency",
        ("efficiency",),
        _percent,
        "speed-up × computed share: how much of the skipped block work came off the whole call, "
        "which has a text encoder, a scheduler and a VAE that no cache shortens",
        shown=Shown.PAGE,
    ),
    Column(
        "floor_share",
        "of the limit",
        ("floor_share",),
        _percent,
        "the least seconds that the device's measured ceilings allow this row's operations and "
        "weights / its seconds: how much better code could still gain, not how fast the row is",
        shown=Shown.PAGE,
    ),
    Column(
        "denoiser_efficiency",
        "denoiser efficiency",
        ("denoiser_efficiency",),
        _percent,
        "dense denoiser seconds / denoiser seconds × computed share: the same of the transformer "
        "calls alone, forecast ones included",
        shown=Shown.PAGE,
        beside=("efficiency",),
    ),
)
_MEMORY = Column(
    "peak_memory_bytes",
    "memory",
    ("peak_memory_bytes",),
    _bytes,
    "peak memory",
    shown=Shown.PAGE,
)


def _of(metric: Metric, figure: Figure) -> Column:
    return Column(
        metric.key,
        figure.title,
        metric.path(figure),
        partial(metric.write, figure),
        figure.about,
        shown=figure.shown,
        spread=(f"{metric.key}_low", f"{metric.key}_high") if metric.per is Per.SET else None,
        error=(f"{metric.key}_error",) if metric.per is Per.SET else (),
        enough=figure.enough,
        few=figure.few,
        unit=str(Unit.DB) if (figure.unit or metric.unit) is Unit.DB else "",
    )


def all_columns(evaluation: Evaluation) -> list[Column]:
    """Every column that a table of this evaluation could have."""
    own = [_of(metric, figure) for metric in evaluation.metrics for figure in metric.numbers()]
    return [*_COST, *own, _MEMORY]


def note_of(evaluation: Evaluation, column: Column) -> str | None:
    """How to get a figure that is not there."""
    notes = evaluation.summary.get("not_available") or {}
    for key in (column.key, column.path[0]):
        if key in notes:
            return str(notes[key])
    return None


def columns_of(evaluation: Evaluation) -> list[Column]:
    """Columns that hold a figure; the footnotes say how to get the others."""
    counts = {evaluation.number(c, "n") for c in evaluation.configs}
    return [
        column
        for column in all_columns(evaluation)
        if any(
            evaluation.number(c, *path) is not None
            for path in (column.path, column.beside)
            for c in evaluation.configs
        )
        # The same number in every row is given once, above the table.
        and (column.key != "n" or len(counts) > 1)
    ]


def small_n(column: Column, samples: float | None) -> str | None:
    """What so few samples do to a figure, None where there are enough."""
    if samples is None or samples >= column.enough:
        return None
    return f"small N: {samples:.0f} samples, below {column.enough} {column.few}"


def speedup_words(evaluation: Evaluation, config: RunConfig) -> str:
    """What replaces a speed-up that does not exist, or stands in front of one that is noisy."""
    return {
        State.OK: "",
        State.NOISY: "noisy",
        State.IMPOSSIBLE: "impossible",
        State.UNSKIPPED: "nothing skipped",
        State.UNTIMED: "not timed",
    }[evaluation.state(config)]


def speedup_reason(evaluation: Evaluation, config: RunConfig) -> str:
    """Why a speed-up is noisy or refused."""
    own = str(evaluation.stats(config)["timing"]["reason"])
    if own or evaluation.state(config) is not State.NOISY:
        return own
    return str((evaluation.summary.get("timing") or {}).get("text", ""))


def cell_text(evaluation: Evaluation, config: RunConfig, column: Column) -> tuple[str, str]:
    """The cell's figure and its range, both empty where there is none."""
    value = evaluation.number(config, *column.path)
    if value is None:
        return (speedup_words(evaluation, config), "") if column.key == "speedup" else ("", "")
    text, tail = column.text(value), ""
    if column.spread and not (column.key == "speedup" and config.role is Role.DENSE):
        bounds = [evaluation.number(config, *column.path[:-1], key) for key in column.spread]
        known = [column.text(bound) for bound in bounds if bound is not None]
        if len(known) == 2:
            tail = f"[{known[0]}, {known[1]}]".replace("×", "")
    error = evaluation.number(config, *column.error) if column.error else None
    if error is not None and not tail:
        tail = f"± {column.text(error)}"
    if column.key == "speedup" and evaluation.state(config) is State.NOISY:
        text = f"noisy {text}"
    return text, tail


def all_small(evaluation: Evaluation, column: Column) -> bool:
    """Whether the small-N flag would stand at every figure of a column."""
    counts = [evaluation.number(config, "n") for config in evaluation.configs]
    return all(small_n(column, count) for count in counts)
