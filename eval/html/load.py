"""Reads an evaluation folder and refuses what it cannot trust."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ditaccel.errors import UsageError

SCHEMA = 1
Json = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """One evaluated configuration, as `run.json` lists it."""

    id: str
    label: str
    series: str
    role: str
    spec: str
    knob: float | None


@dataclass(frozen=True)
class Evaluation:
    """The three files of an evaluation folder.

    Attributes:
        folder: where `media/` lies.
        run: `run.json`.
        results: the lines of `results.jsonl`.
        summary: `summary.json`.
        configs: configurations that have a summary, in the order of the run.
    """

    folder: Path
    run: Json
    results: list[Json]
    summary: Json
    configs: list[Config]

    def stats(self, config: Config) -> Json:
        """The summary's entry of `config`."""
        stats: Json = self.summary["configs"][config.id]
        return stats

    def number(self, config: Config, *path: str) -> float | None:
        """A finite number of the summary, or None where it is missing, null or not finite."""
        value: Any = self.stats(config)
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if math.isfinite(value) else None

    @cached_property
    def rows(self) -> dict[str, dict[str, Json]]:
        """Results by configuration, then by sample."""
        table: dict[str, dict[str, Json]] = {}
        for row in self.results:
            table.setdefault(row["config"], {})[row["sample"]] = row
        return table

    def failed(self, config: Config) -> list[str]:
        """Samples of `config` whose output was not finite."""
        rows = self.rows.get(config.id, {})
        return [name for name, row in rows.items() if row.get("finite") is False]


def _json(path: Path) -> Json:
    if not path.is_file():
        raise UsageError(
            f"{path.parent} holds no {path.name}: name a folder that `ditaccel eval --out` wrote"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON ({error}): run the evaluation again") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} must hold a JSON object: run the evaluation again")
    return value


def _lines(path: Path) -> list[Json]:
    if not path.is_file():
        raise UsageError(
            f"{path.parent} holds no {path.name}: name a folder that `ditaccel eval --out` wrote"
        )
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row["config"], row["sample"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{path}, line {number}, is damaged ({error}): delete that line and run the "
                "evaluation again"
            ) from None
        rows.append(row)
    return rows


def _configs(run: Json, summary: Json, folder: Path) -> list[Config]:
    try:
        listed = [
            Config(c["id"], c["label"], c["series"], c["role"], c["spec"], c.get("knob"))
            for c in run["configs"]
        ]
        have = summary["configs"]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{folder}: run.json or summary.json lacks {error}: run the evaluation again"
        ) from None
    return [config for config in listed if config.id in have]


def load_evaluation(folder: str | Path) -> Evaluation:
    """Read `run.json`, `results.jsonl` and `summary.json`.

    Args:
        folder: what `ditaccel eval --out` wrote.

    Raises:
        UsageError: a file is missing, damaged, of another schema, or holds no result.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: name one that `ditaccel eval --out` wrote")
    run = _json(folder / "run.json")
    if run.get("schema") != SCHEMA:
        raise UsageError(
            f"{folder / 'run.json'} has schema {run.get('schema')!r}, this version reads {SCHEMA}: "
            "run the evaluation again"
        )
    results = _lines(folder / "results.jsonl")
    summary = _json(folder / "summary.json")
    configs = _configs(run, summary, folder)
    if not results or not configs:
        raise UsageError(f"{folder} holds no results yet: let the evaluation finish first")
    return Evaluation(folder, run, results, summary, configs)
