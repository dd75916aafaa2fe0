"""Which settings are measured, and the figures that are there already."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from ditaccel.attention.engine.options import Rest
from ditaccel.config import AttentionConfig, method_spec, methods
from ditaccel.config.published import settings
from ditaccel.errors import ConfigError, UsageError
from ditaccel.io.files import read_json, write_json
from ditaccel.io.given import suggest

RESTS: tuple[str, ...] = get_args(Rest)
DEFAULT, PUBLISHED, CHOSEN = "default", "published", "chosen"
_MEASURED = "methods"
# All of a run is measured: no step, layer, length or dense map is left out.
_OPEN: dict[str, Any] = {"dense_steps": 0, "dense_layers": 0, "min_tokens": 0, "break_even": 1.0}


@dataclass(frozen=True)
class Point:
    """One setting of a method.

    Attributes:
        method: its name.
        setting: `DEFAULT`; `PUBLISHED` for the options of its authors; `CHOSEN` for what was chosen
            from the figures of the others.
        rest: what stands for tiles that are not computed; `as published` where its authors' options
            say so.
        precision: of the scores; empty where the method takes its own.
        option: that walks the density; empty where none does.
        value: of that option.
        config: all of it.
    """

    method: str
    setting: str
    rest: str
    precision: str
    option: str
    value: Any
    config: Any

    @property
    def label(self) -> str:
        """In short, for people."""
        return _label(self.method, self.setting, self.rest, self.option, self.value)

    @property
    def spec(self) -> str:
        """The config as a user writes it, which tells one point from another."""
        return method_spec(self.config)


def attention_methods(names: Sequence[str] | None) -> dict[str, type[AttentionConfig]]:
    """The attention methods of these names; by default all that are registered.

    Raises:
        UsageError: there is no such attention method.
    """
    known = {n: c for n, c in methods().items() if issubclass(c, AttentionConfig)}
    if names is None:
        return known
    for name in names:
        if name not in known:
            raise UsageError(
                f"{name}: there is no such attention method{suggest(name, list(known))}", "methods"
            )
    return {name: known[name] for name in dict.fromkeys(names)}


def points_of(
    kind: type[AttentionConfig],
    family: str,
    rests: Sequence[str],
    precisions: Sequence[str] = (),
    tile: int | None = None,
) -> Iterator[Point | tuple[str, str]]:
    """All that is measured of a method.

    Args:
        kind: its config class.
        family: whose published options are meant.
        rests: what stands for tiles that are not computed, in turn.
        precisions: of the scores, in turn, where the method has that option.
        tile: tokens per tile of queries and of keys, where the method lets them be chosen.

    Yields:
        A point; or, of one whose options do not go together, its label and the reason.
    """
    swept = getattr(kind, "swept", None)
    values = [None] if swept is None else list(swept.values)
    option = "" if swept is None else swept.option
    fields = kind.__dataclass_fields__
    shared = {k: v for k, v in _OPEN.items() if k in fields}
    own = {} if swept is None else dict(swept.options)
    authors = settings(kind, family)
    rows: list[tuple[str, str, dict[str, Any]]] = [
        (DEFAULT, rest, {**own, **({"rest": rest} if "rest" in fields else {})})
        for rest in (rests if "rest" in fields else ("nothing",))
    ]
    if authors:
        rows.append((PUBLISHED, str(authors.get("rest") or "as published"), {**authors, **own}))
    words = precisions if precisions and "precision" in fields else [""]
    for setting, rest, options in rows:
        for precision in words:
            exact = {"precision": precision} if precision else {}
            for value in values:
                chosen = {option: value} if option else {}
                label = _label(kind.method, setting, rest, option, value)
                try:
                    config = replace(kind(), **{**options, **exact, **chosen, **shared})
                    config = _tiled(config, tile)
                except ConfigError as error:
                    yield label, str(error)
                    continue
                yield Point(kind.method, setting, rest, precision, option, value, config)


def _tiled(config: Any, tile: int | None) -> Any:
    """A config with other tiles, unless its own follow from something else."""
    names = [name for name in ("q_tile", "k_tile") if name in config.__dataclass_fields__]
    if tile is None:
        return config
    with contextlib.suppress(ConfigError):
        return replace(config, **dict.fromkeys(names, tile))
    return config


def _label(method: str, setting: str, rest: str, option: str, value: Any) -> str:
    """A point for people, in short."""
    words = f"{method}, {rest if setting == DEFAULT else 'as published'}"
    return f"{words}, {option}={value}" if option else words


class Measured:
    """The figures of one method, in a file of their own.

    Args:
        folder: of the bench.
        method: its name.
    """

    def __init__(self, folder: Path, method: str) -> None:
        self._path = folder / _MEASURED / f"{method}.json"
        self._rows: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            found = read_json(self._path)
            try:
                self._rows = {row["spec"]: row for row in found["rows"]}
            except (KeyError, TypeError):
                raise UsageError(
                    f"{self._path} is damaged; delete it to have the method measured again"
                ) from None

    def get(self, point: Point) -> dict[str, Any] | None:
        """The row of a point, None where it was not measured yet."""
        return self._rows.get(point.spec)

    def add(self, point: Point, figures: dict[str, Any]) -> dict[str, Any]:
        """Keep the figures of a point, on the disk before this returns."""
        row = {
            "method": point.method,
            "setting": point.setting,
            "rest": point.rest,
            "precision": point.precision,
            "option": point.option,
            "value": point.value,
            "spec": point.spec,
            **figures,
        }
        self._rows[point.spec] = row
        write_json(self._path, {"rows": list(self._rows.values())})
        return row
