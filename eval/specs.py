"""What to compare: `--config` texts into runs, with sweeps, labels and unique names."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ditaccel.errors import ConfigError
from ditaccel.io.arguments import value_of

DENSE = "dense"
OTHER_SEED = "other_seed"
FEWER_STEPS = "fewer_steps"
METHOD = "method"
PEER = "peer"
ROLES = (DENSE, OTHER_SEED, FEWER_STEPS, METHOD, PEER)

FORMS = (
    "a preset name, a YAML file, `method:option=value,…`, `caching & attention` (two of those), "
    "`steps:N`, `steps:N+method:…` or `peer/name:option=value,…`; `a|b|c` in place of a value "
    "makes a series"
)
_LABEL = re.compile(r"^([^=:|,+]+)=(.+)$")
_NAME = re.compile(r"^[A-Za-z_][\w]*$")


@dataclass(frozen=True)
class RunConfig:
    """One row of the comparison.

    Attributes:
        id: file name of its results, unique in the run.
        label: what tables and plots call it.
        series: rows that differ in one swept value share it: they form one curve.
        role: `dense`, `other_seed`, `fewer_steps`, `method` or `peer`.
        spec: text that makes exactly this row.
        knob: the swept value, where it is a number.
        steps: scheduler steps, None for the call's own.
        cache: text of the plugin's config, None where the plugin is off.
        peer: name of the peer, None where it is none.
        options: the peer's options.
    """

    id: str
    label: str
    series: str
    role: str
    spec: str
    knob: float | None = None
    steps: int | None = None
    cache: str | None = None
    peer: str | None = None
    options: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The fields that `run.json` keeps."""
        keep = ("id", "label", "series", "role", "spec", "knob")
        return {k: v for k, v in asdict(self).items() if k in keep}


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
            raise ConfigError(f"--config {text!r}: an empty alternative between `|`")
        found.append(("".join(combination), tuple(combination[i] for i in swept)))
    return found


def _options(text: str, where: str) -> tuple[tuple[str, str], ...]:
    options = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, separator, value = item.partition("=")
        if not separator or not _NAME.match(key.strip()) or not value.strip():
            raise ConfigError(f"--config {where!r}: {item!r} is not option=value")
        options.append((key.strip(), value.strip()))
    names = [key for key, _ in options]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--config {where!r}: option {twice[0]!r} is given twice")
    return tuple(options)


def _steps(text: str, where: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise ConfigError(f"--config {where!r}: steps:{text} needs a whole number >= 1")
    return int(text)


def _one(spec: str, label: str | None, series: str, swept: tuple[str, ...]) -> RunConfig:
    steps, rest = None, spec
    if spec.startswith("steps:"):
        head, _, rest = spec.partition("+")
        steps = _steps(head.removeprefix("steps:"), spec)
    name = spec if label is None else " ".join((label, *swept))
    knob = _number(swept[0]) if swept else None
    common: dict[str, Any] = {"label": name, "series": series, "spec": spec, "knob": knob}
    if not rest:
        common |= {"knob": float(steps or 0), "label": label or f"{steps} steps"}
        return RunConfig(_slug(spec), role=FEWER_STEPS, steps=steps, **common)
    if rest.startswith("peer/"):
        peer, _, options = rest.removeprefix("peer/").partition(":")
        return RunConfig(
            _slug(spec),
            role=PEER,
            steps=steps,
            peer=peer.strip(),
            options=_options(options, spec),
            **common,
        )
    return RunConfig(_slug(spec), role=METHOD, steps=steps, cache=rest, **common)


def parse_config(text: str) -> list[RunConfig]:
    """The rows that one `--config` asks for.

    Raises:
        ConfigError: the text has none of the known forms. Names of methods, presets and peers are
            checked later, against the model.
    """
    text = text.strip()
    if not text:
        raise ConfigError(f"--config is empty; expected {FORMS}")
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
        RunConfig("dense", "dense", "dense", DENSE, "dense"),
        RunConfig("other-seed", "dense, another seed", "other seed", OTHER_SEED, "other_seed"),
    ]
    for count in fewer:
        if not 1 <= count < steps:
            raise ConfigError(
                f"a fewer-steps baseline of {count} steps makes no sense beside {steps} dense steps"
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
            if row.steps is not None and row.steps > steps:
                raise ConfigError(f"--config {text!r}: more steps than the dense run's {steps}")
            if row.role == FEWER_STEPS and row.steps == steps:
                raise ConfigError(f"--config {text!r}: the dense run has {steps} steps already")
            if validate is not None:
                validate(row)
            if row.id in rows and rows[row.id].spec != row.spec:
                raise ConfigError(
                    f"--config {text!r} and {rows[row.id].spec!r} would share the name {row.id!r}"
                )
            rows.setdefault(row.id, row)
    labels = [row.label for row in rows.values()]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ConfigError(f"two rows are labelled {twice[0]!r}: give them different labels")
    return list(rows.values())
