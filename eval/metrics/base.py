"""What a metric is, and the table of all of them.

A metric is one file that registers it; judge, summary, tables and pages loop over what is
registered. A module of the user's does the same, and importing it is enough:

    from ditaccel.eval.metrics.base import Metric, register

    register(
        Metric(
            key="mae",
            title="MAE",
            unit="number",
            better="lower",
            about="mean absolute difference to dense in 8-bit levels",
            run=lambda reference, frames: abs(reference.astype(float) - frames).mean(),
        )
    )
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ditaccel.errors import ConfigError

from ..registry import Registry

Values = Mapping[str, Any]
Run = Callable[..., Any]


class Unit(StrEnum):
    """What a figure counts, which says how it is written."""

    DB = "dB"
    SHARE = "share"
    COUNT = "count"
    FLAG = "flag"
    NUMBER = "number"


class Better(StrEnum):
    """Which way a figure is good."""

    HIGHER = "higher"
    LOWER = "lower"
    NONE = "none"


class Per(StrEnum):
    """What a metric is measured on."""

    SAMPLE = "sample"
    SET = "set"


class Need(StrEnum):
    """What a metric must be given.

    `pictures` are decoded frames, `prompt` the text behind them, `features` the run's feature
    extractor, `reference` the user's real samples, `weights` a file or folder of the metric's own,
    and `judge` what judges whether a sample shows its prompt.
    """

    PICTURES = "pictures"
    PROMPT = "prompt"
    FEATURES = "features"
    REFERENCE = "reference"
    WEIGHTS = "weights"
    JUDGE = "judge"


class Shown(StrEnum):
    """The smallest table that a figure is in; larger ones have it too."""

    TERMINAL = "terminal"
    FILE = "file"
    PAGE = "page"


@dataclass(frozen=True)
class Estimate:
    """A value, with what other samples would make of it.

    Attributes:
        value: that was measured.
        error: its standard error, None where that is not known.
        interval: the lowest and highest value of 95 % of all draws of as many samples, None where
            that is not known.
    """

    value: float
    error: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number that a metric comes to over the samples of a row: a column of the tables.

    Attributes:
        title: header of the column.
        about: what the header's tooltip says.
        name: its key below the metric's in `summary.json`, "" where there is this number alone.
        of: makes the number of the samples' values of all metrics; None takes the mean.
        unit: None is the metric's.
        format: writes the number; None writes it as the unit does.
        shown: the smallest table that has it.
        enough: below so many samples the figure is flagged.
        few: what the flag says.
    """

    title: str
    about: str
    name: str = ""
    of: Callable[[Sequence[Values]], float | None] | None = None
    unit: Unit | None = None
    format: Callable[[float], str] | None = None
    shown: Shown = Shown.TERMINAL
    enough: int = 0
    few: str = ""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How good a sample, or a set of samples, is.

    Attributes:
        key: its name in files.
        title: its name in tables.
        unit: a value of `Unit`.
        better: a value of `Better`.
        about: what it measures, in a few words, with its range.
        run: measures. Per sample it gets dense's frames and the row's, both uint8 (F, H, W, 3), and
            returns a number, a flag, or None where there is no answer. Per set it gets the
            reference set and the row's, each as features (N, D) where it needs features, else as a
            list of frames, and returns a number or an `Estimate`. The prompt comes as `prompt=`.
        load: makes `run` from a file or folder of weights, where it needs weights.
        weights: what the user calls these weights; "" is its key. Metrics with the same `load` that
            are given the same weights share what it made.
        per: `sample`, or `set`: then the reference set is dense's samples, or the real ones where
            it needs `reference`.
        needs: values of `Need`.
        package: a module that must be importable.
        how: how to get the package or the weights.
        format: writes a value; None writes it as the unit does.
        shown: the smallest table that has it.
        fewest: with fewer samples it is left out.
        enough: below so many samples its figure is flagged.
        few: what the flag says.
        figures: what it comes to over the samples of a row; None is the mean alone.
        essential: whether every result has it.

    Raises:
        ConfigError: a word that is unknown, or nothing to measure with.
    """

    key: str
    title: str
    unit: Unit | str
    better: Better | str
    about: str
    run: Run | None = None
    load: Callable[[str], Run] | None = None
    weights: str = ""
    per: Per | str = Per.SAMPLE
    needs: Sequence[Need | str] = (Need.PICTURES,)
    package: str = ""
    how: str = ""
    format: Callable[[float], str] | None = None
    shown: Shown = Shown.TERMINAL
    fewest: int = 1
    enough: int = 0
    few: str = ""
    figures: tuple[Figure, ...] | None = None
    essential: bool = False

    def __post_init__(self) -> None:
        if not self.key.isidentifier():
            raise ConfigError(f"a metric's key must be a word like psnr, not {self.key!r}")
        for name, words in (("unit", Unit), ("better", Better), ("per", Per), ("shown", Shown)):
            object.__setattr__(self, name, self._word(name, words, getattr(self, name)))
        needs = tuple(self._word("needs", Need, need) for need in self.needs)
        object.__setattr__(self, "needs", needs)
        if (Need.WEIGHTS in needs) != (self.load is not None):
            raise ConfigError(f"metric {self.key!r}: `load` goes with needs=('weights', ...)")

    def _word(self, name: str, words: type[StrEnum], value: Any) -> StrEnum:
        try:
            return words(value)
        except ValueError:
            raise ConfigError(
                f"metric {self.key!r}: {name} is {value!r}; it must be one of: {', '.join(words)}"
            ) from None

    @property
    def weights_name(self) -> str:
        """What the user calls its weights; "" where it needs none."""
        return "" if self.load is None else self.weights or self.key

    def numbers(self) -> tuple[Figure, ...]:
        """Its figures over the samples of a row."""
        if self.figures is not None:
            return self.figures
        own = Figure(
            title=self.title,
            about=self.about,
            format=self.format,
            shown=self.shown,
            enough=self.enough,
            few=self.few,
        )
        return (own,)

    def path(self, figure: Figure) -> tuple[str, ...]:
        """Where a figure stands in a row of `summary.json`."""
        group = (ACCURACY,) if Need.JUDGE in self.needs else ()
        return (*group, self.key, *filter(None, [figure.name]))

    def figure(self, figure: Figure, values: Sequence[Values]) -> float | None:
        """One of its figures over the values of a row's samples."""
        if figure.of is not None:
            return figure.of(values)
        known = [float(v[self.key]) for v in values if v.get(self.key) is not None]
        return sum(known) / len(known) if known else None

    def write(self, figure: Figure, value: float) -> str:
        """A figure as text."""
        form = figure.format or _FORMATS[figure.unit or Unit(self.unit)]
        return form(value)

    def to_dict(self) -> dict[str, Any]:
        """What `run.json` keeps, so that a reader who lacks its module can show its figures."""
        return {name: getattr(self, name) for name in DESCRIBED if name != "needs"} | {
            "needs": [need for need in self.needs if need is not Need.WEIGHTS]
        }


# Where a row of `summary.json` holds the scores of a judge of prompts.
ACCURACY = "accuracy"
# Whether the judge sees in a sample what it sees in dense's; a judge may have no answer.
SAME = "same"
# What else such a row holds: a metric of that name would hide it.
_RESERVED = {
    ACCURACY,
    "computed_share",
    "denoise_seconds",
    "denoiser_efficiency",
    "denoiser_speedup",
    "efficiency",
    "floor_seconds",
    "floor_share",
    "n",
    "peak_memory_bytes",
    "seconds",
    "speedup",
    "timing",
}
# What `run.json` keeps of a metric.
DESCRIBED = ("key", "title", "unit", "better", "about", "per", "needs", "shown")
_FORMATS: dict[Unit, Callable[[float], str]] = {
    Unit.DB: lambda value: f"{value:.1f}",
    Unit.SHARE: lambda value: f"{value:.0%}",
    Unit.COUNT: lambda value: f"{value:.0f}",
    Unit.FLAG: lambda value: f"{value:.0%}",
    Unit.NUMBER: lambda value: f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}",
}
METRICS: Registry[Metric] = Registry("metric", "ditaccel.eval.metrics")


def register(metric: Metric) -> Metric:
    """Make a metric known; a module that does so when it is imported is enough.

    Raises:
        ConfigError: the key is taken or reserved, or there is nothing to measure with.
    """
    if metric.key in _RESERVED:
        raise ConfigError(f"metric {metric.key!r}: tables have a figure of that name already")
    if metric.run is None and metric.load is None:
        raise ConfigError(f"metric {metric.key!r} has no `run`: nothing measures it")
    return METRICS.add(metric.key, metric)


def metrics() -> list[Metric]:
    """All registered metrics in the order of the tables: those that every result has come first."""
    return sorted(METRICS.values(), key=lambda m: (not m.essential, m.per is Per.SET))


def score(key: str, about: str = "") -> Metric:
    """A share that a judge of prompts finds right, as a metric.

    Args:
        key: of the score in the judge's answer.
        about: what it is the share of.
    """
    return Metric(
        key=key,
        title=key,
        unit=Unit.SHARE,
        better=Better.HIGHER,
        about=about or f"share of samples whose {key} is what the prompt asks for",
        needs=(Need.PICTURES, Need.PROMPT, Need.JUDGE),
        shown=Shown.FILE,
    )


def _known(described: Mapping[str, Any]) -> Metric:
    if described["key"] in METRICS:
        return METRICS[described["key"]]
    return Metric(**{name: described[name] for name in DESCRIBED if name in described})


def measured(run: Mapping[str, Any], scores: Sequence[str] = ()) -> list[Metric]:
    """The metrics of an evaluation: as registered here, else as its `run.json` describes them.

    Args:
        run: content of `run.json`; one of an earlier version describes none.
        scores: keys of further scores that the evaluation's files hold.
    """
    known = [_known(one) for one in run["metrics"]] if "metrics" in run else metrics()
    keys = {metric.key for metric in known}
    return [*known, *(score(key) for key in dict.fromkeys(scores) if key not in keys)]
