"""What to compare: `--config` texts into runs, with sweeps, labels and unique names."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from ditaccel.errors import ConfigError
from ditaccel.io.arguments import value_of


class Role(StrEnum):
    """What a row of a comparison is there for."""

    DENSE = "dense"
    OTHER_SEED = "other_seed"
    FEWER_STEPS = "fewer_steps"
    METHOD = "method"
    PEER = "peer"


# What is asked about: is it better than fewer steps?
JUDGED = (Role.METHOD, Role.PEER)
# What stands in the plane of speed and quality.
COMPARED = (Role.FEWER_STEPS, *JUDGED)
FORMS = (
    "a preset name, a YAML file, `method:option=value,…`, `caching & attention` (two of those), "
    "`steps:N`, `steps:N+method:…`, `steps:auto+preset` or `peer/name:option=value,…`; `a|b|c` in "
    "place of a value "
    "makes a series"
)
_LABEL = re.compile(r"^([^=:|,+]+)=(.+)$")
_NAME = re.compile(r"^[A-Za-z_][\w]*$")


@dataclass(frozen=True)
class RunConfig:
    """One row of the comparison, from the command line to the page.

    Attributes:
        id: file name of its results, unique in the run.
        label: what tables and plots call it.
        series: rows that differ in one swept value share it: they form one curve.
        role: what it is there for.
        spec: text that makes exactly this row.
        knob: the swept value, where it is a number.
        sparse: whether it saves what counted layers do not show: parts of the attention, tokens
            that merge, calls side by side.
    """

    id: str
    label: str
    series: str
    role: Role
    spec: str
    knob: float | None = None
    sparse: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As `run.json` holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunConfig:
        """A row of a checked `run.json`."""
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        return cls(**{**known, "role": Role(data["role"])})

    @cached_property
    def work(self) -> Work:
        """What its text asks for.

        Raises:
            ConfigError: the text has none of the known forms.
        """
        if self.role in (Role.DENSE, Role.OTHER_SEED):
            return Work()
        steps, rest = None, self.spec
        if rest.startswith("steps:") and not _leaves_steps(rest):
            head, _, rest = rest.partition("+")
            steps = _steps(head.removeprefix("steps:"), self.spec)
        if not rest.startswith("peer/"):
            return Work(steps, cache=rest or None)
        peer, _, options = rest.removeprefix("peer/").partition(":")
        return Work(steps, peer=peer.strip(), options=_options(options, self.spec))


@dataclass(frozen=True)
class Work:
    """What a row does to the pipeline.

    Attributes:
        steps: scheduler steps, None for the call's own.
        cache: text of the plugin's config, None where the plugin is off.
        peer: name of the peer, None where there is none.
        options: the peer's options.
    """

    steps: int | None = None
    cache: str | None = None
    peer: str | None = None
    options: tuple[tuple[str, str], ...] = ()


def configs_of(run: Mapping[str, Any]) -> list[RunConfig]:
    """The rows of a checked `run.json`, in its order."""
    return [RunConfig.from_dict(config) for config in run["configs"]]


def parse_value(text: str) -> Any:
    """A Python value of an option's text, as everywhere on the command line."""
    try:
        return value_of(text)
    except ValueError:
        return text.strip()


def _number(text: str | None) -> float | None:
    value = parse_value(text) if text is not None else None
    return float(value) if isinstance(value, (int, float)) else None


def _slug(text: str) -> str:
    slug = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "config"
    if len(slug) > 60:
        slug = f"{slug[:48]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return slug


def _split_label(text: str) -> tuple[str | None, str]:
    """`label=spec` into its parts: an `=` before the first `:` cannot be an option's."""
    match = _LABEL.match(text)
    if match is None:
        return None, text
    return match.group(1).strip(), match.group(2).strip()


def _sweep(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Every combination of the `a|b|c` alternatives, each with its swept values."""
    parts = re.split(r"([:=,+&])", text)
    choices = [part.split("|") for part in parts]
    swept = [i for i, choice in enumerate(choices) if len(choice) > 1]
    found = []
    for combination in itertools.product(*choices):
        if "" in [combination[i].strip() for i in swept]:
            raise ConfigError(f"{text!r}: an empty alternative between `|`", "config")
        found.append(("".join(combination), tuple(combination[i] for i in swept)))
    return found


def _options(text: str, where: str) -> tuple[tuple[str, str], ...]:
    options = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, separator, value = item.partition("=")
        if not separator or not _NAME.match(key.strip()) or not value.strip():
            raise ConfigError(f"{where!r}: {item!r} is not option=value", "config")
        options.append((key.strip(), value.strip()))
    names = [key for key, _ in options]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{where!r}: option {twice[0]!r} is given twice", "config")
    return tuple(options)


def _steps(text: str, where: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise ConfigError(f"{where!r}: steps:{text} needs a whole number >= 1", "config")
    return int(text)


def _leaves_steps(spec: str) -> bool:
    """Whether a text such as `steps:auto+balanced` leaves the number of steps to the plugin."""
    head, _, rest = spec.removeprefix("steps:").partition("+")
    return head.strip() == "auto" and not rest.startswith("peer/") and bool(rest)


def _one(spec: str, label: str | None, series: str, swept: tuple[str, ...]) -> RunConfig:
    name = spec if label is None else " ".join((label, *swept))
    knob = _number(swept[0]) if swept else None
    rest = spec.partition("+")[2] if spec.startswith("steps:") else spec
    role = Role.PEER if rest.startswith("peer/") else Role.METHOD if rest else Role.FEWER_STEPS
    row = RunConfig(_slug(spec), name, series, role, spec, knob)
    steps = row.work.steps  # raises where the text is wrong
    if role is not Role.FEWER_STEPS:
        return row
    return replace(row, label=label or _step_label(steps), knob=float(steps or 0))


def _step_label(number: int | None) -> str:
    return "1 step" if number == 1 else f"{number} steps"


def parse_config(text: str) -> list[RunConfig]:
    """The rows that one `--config` asks for.

    Raises:
        ConfigError: the text has none of the known forms. Names of methods, presets and peers are
            checked later, against the model.
    """
    text = text.strip()
    if not text:
        raise ConfigError(f"is empty; expected {FORMS}", "config")
    label, spec = _split_label(text)
    files = [Path(part) for part in spec.split("|")]
    if all(file.suffix in (".yaml", ".yml", ".json") for file in files):
        series = label or (files[0].stem if len(files) == 1 else files[0].parent.name)
        names = [series] if len(files) == 1 else [f"{series} {file.stem}" for file in files]
        return [_one(str(file), name, series, ()) for file, name in zip(files, names, strict=True)]
    rows = _sweep(spec)
    # What stays the same along the curve names it.
    series = re.sub(r"[^:=,+|&]+(\|[^:=,+|&]+)+", "*", spec)
    if spec.startswith("steps:") and "+" not in spec:
        series = "fewer steps"
    return [_one(one, label, label or series, swept) for one, swept in rows]


def baselines(steps: int, fewer: Sequence[int] | None = None) -> list[RunConfig]:
    """The rows that every comparison holds: dense, dense with another seed, and fewer steps.

    Args:
        steps: the dense run's scheduler steps.
        fewer: step counts to add, by default 3/4, 1/2, 1/3, 1/4 and 1/5 of `steps`.

    Raises:
        ConfigError: a step count below 1, or not below `steps`.
    """
    if fewer is None:
        shares = (3 / 4, 1 / 2, 1 / 3, 1 / 4, 1 / 5)
        fewer = sorted({max(1, round(steps * share)) for share in shares} - {steps}, reverse=True)
    rows = [
        RunConfig("dense", "dense", "dense", Role.DENSE, "dense"),
        RunConfig("other-seed", "dense, another seed", "other seed", Role.OTHER_SEED, "other_seed"),
    ]
    for count in fewer:
        if not 1 <= count < steps:
            raise ConfigError(
                f"a fewer-steps baseline of {count} steps makes no sense with {steps} dense steps"
            )
        rows += parse_config(f"steps:{count}")
    return rows


def build(
    texts: Sequence[str],
    steps: int,
    fewer: Sequence[int] | None = None,
    validate: Callable[[RunConfig], None] | None = None,
) -> list[RunConfig]:
    """All rows of a run: the baselines, then what the user asked for, without repeats.

    Args:
        texts: `--config` texts.
        steps: the dense run's scheduler steps.
        fewer: see `baselines`.
        validate: called with each row that the user asked for; raises where it cannot run.

    Raises:
        ConfigError: an unusable text, or two different rows under one name.
    """
    rows = {row.id: row for row in baselines(steps, fewer)}
    for text in texts:
        for row in parse_config(text):
            if row.work.steps is not None and row.work.steps > steps:
                raise ConfigError(f"{text!r}: more steps than the dense run's {steps}", "config")
            if row.role is Role.FEWER_STEPS and row.work.steps == steps:
                raise ConfigError(f"{text!r}: the dense run has {steps} steps already", "config")
            if validate is not None:
                validate(row)
            if row.id in rows and rows[row.id].spec != row.spec:
                raise ConfigError(
                    f"{text!r} and {rows[row.id].spec!r} would share the name {row.id!r}", "config"
                )
            rows.setdefault(row.id, row)
    labels = [row.label for row in rows.values()]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ConfigError(f"two rows are labelled {twice[0]!r}: give them different labels")
    return list(rows.values())
