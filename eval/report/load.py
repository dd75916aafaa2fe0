"""Reads an evaluation folder and refuses what it cannot trust."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ditaccel.eval.measure.pairs import State
from ditaccel.eval.metrics.base import ACCURACY, Metric, measured
from ditaccel.eval.records import AGAIN, FAILURE, RESULT, read_all, read_run
from ditaccel.eval.records import SUMMARY as SHAPE
from ditaccel.eval.specs import Role, RunConfig, configs_of
from ditaccel.eval.store import FAILURES, RESULTS, RUN, SUMMARY
from ditaccel.eval.summary.pareto import Point, points_of, state_of

from ditaccel.errors import UsageError
from ditaccel.io.checked import read_record

Json = dict[str, Any]


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
    configs: list[RunConfig]

    def stats(self, config: RunConfig) -> Json:
        """The summary's entry of `config`."""
        stats: Json = self.summary["configs"][config.id]
        return stats

    def number(self, config: RunConfig, *path: str) -> float | None:
        """A finite number of the summary, or None where it is missing, null or not finite."""
        value: Any = self.stats(config)
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if math.isfinite(value) else None

    def state(self, config: RunConfig) -> State:
        """What the speed-up of `config` is worth; noisy where the whole table is."""
        return state_of(config, self.stats(config), self.trusted)

    @property
    def dense(self) -> RunConfig | None:
        """The reference, where it has results."""
        return next((config for config in self.configs if config.role is Role.DENSE), None)

    @cached_property
    def points(self) -> list[Point]:
        """The rows in the plane of speed and quality."""
        return points_of(self.configs, self.summary["configs"], self.trusted)

    @property
    def trusted(self) -> bool:
        """Whether the table's control row came out at 1.00: its timing can be trusted."""
        return bool((self.summary.get("timing") or {}).get("trusted", True))

    @property
    def moving(self) -> bool:
        """Whether the samples are clips."""
        return self.run.get("fps") is not None or "video" in str(self.run.get("task", ""))

    @cached_property
    def metrics(self) -> list[Metric]:
        """What was measured, in the order of the tables."""
        rows = self.summary["configs"].values()
        return measured(self.run, [key for row in rows for key in row.get(ACCURACY, ())])

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


def load_evaluation(folder: str | Path) -> Evaluation:
    """Read `run.json`, `results.jsonl` and `summary.json`.

    Args:
        folder: the folder that `ditaccel eval` wrote.

    Raises:
        UsageError: a file is missing, damaged, of another schema, or holds no result.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is not a folder: name one that `ditaccel eval` or `ditaccel generate` wrote"
        )
    run = read_run(folder / RUN)
    results = read_all(folder / RESULTS, RESULT)
    failures = read_all(folder / FAILURES, FAILURE)
    summary = read_record(folder / SUMMARY, SHAPE, "run the same command again")
    configs = [config for config in configs_of(run) if config.id in summary["configs"]]
    if not results or not configs:
        raise UsageError(f"{folder} holds no results yet: let the evaluation finish first")
    known = {c["id"] for c in run["configs"]}
    strange = next((x["config"] for x in (*results, *failures) if x["config"] not in known), None)
    if strange is not None:
        shown = strange[:60].encode("unicode_escape").decode()
        raise UsageError(
            f"{folder / RESULTS} is damaged: {shown!r} is not a config of {RUN}; {AGAIN}"
        )
    return Evaluation(folder, run, results, failures, summary, configs)
