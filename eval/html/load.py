"""Reads an evaluation folder and refuses what it cannot trust."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ditaccel.eval.store import FAILURES, RESULTS, RUN, SUMMARY

from ditaccel.errors import UsageError
from ditaccel.files import read_json, read_lines

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
    """What an evaluation folder holds.

    Attributes:
        folder: where `media/` lies.
        run: `run.json`.
        results: the lines of `results.jsonl`.
        failures: the lines of `failures.jsonl`: generations that raised or were not finite.
        summary: `summary.json`.
        configs: configurations that have a summary, in the order of the run.
    """

    folder: Path
    run: Json
    results: list[Json]
    failures: list[Json]
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

    @property
    def moving(self) -> bool:
        """Whether the samples are clips."""
        return self.run.get("fps") is not None or "video" in str(self.run.get("task", ""))

    @cached_property
    def rows(self) -> dict[str, dict[str, Json]]:
        """Results by configuration, then by sample."""
        table: dict[str, dict[str, Json]] = {}
        for row in self.results:
            table.setdefault(row["config"], {})[row["sample"]] = row
        return table

    def failed(self, config_id: str) -> dict[str, str]:
        """Samples of a configuration that gave nothing usable, with the reason."""
        rows = self.rows.get(config_id, {})
        bad = {
            line["sample"]: str(line.get("error") or "failed")
            for line in self.failures
            # A later run on the same folder may have made it good.
            if line["config"] == config_id and line["sample"] not in rows
        }
        words = "the output was not finite (NaN or infinity)"
        return bad | {name: words for name, row in rows.items() if row.get("finite") is False}


def _object(path: Path) -> Json:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UsageError(f"{path} must hold a JSON object: run the evaluation again")
    return value


def _rows(path: Path) -> list[Json]:
    rows = read_lines(path)
    if any("config" not in row or "sample" not in row for row in rows):
        raise UsageError(
            f"{path}: a line names no config or no sample: delete it and run the evaluation again"
        )
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
        raise UsageError(
            f"{folder} is not a folder: name one that `ditaccel eval --out` or "
            "`ditaccel generate --out` wrote"
        )
    run = _object(folder / RUN)
    if run.get("schema") != SCHEMA:
        raise UsageError(
            f"{folder / RUN} has schema {run.get('schema')!r}, this version reads {SCHEMA}: "
            "run the evaluation again"
        )
    results = _rows(folder / RESULTS)
    failures = _rows(folder / FAILURES)
    summary = _object(folder / SUMMARY)
    configs = _configs(run, summary, folder)
    if not results or not configs:
        raise UsageError(f"{folder} holds no results yet: let the evaluation finish first")
    return Evaluation(folder, run, results, failures, summary, configs)
