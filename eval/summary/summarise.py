"""results.jsonl into summary.json: distributions, distances, matched speeds and verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ditaccel.errors import UsageError
from ditaccel.io.checked import read_record
from ditaccel.io.files import write_json

from .. import store
from ..comparison.sampler import make_samples
from ..measure.pairs import WHOLE, Pair, State, Timed, control_state, timed
from ..metrics.base import ACCURACY, Metric, Need, Per, measured
from ..records import FAILURE, RESULT, SUMMARY, WARMUP, read_all, read_run
from ..specs import JUDGED, Role, RunConfig, configs_of
from . import pareto
from .distances import Lines, add_distances
from .limits import Limits
from .machines import Machines
from .verdicts import Kind, Level, Verdict, headline, verdicts

if TYPE_CHECKING:
    from ..judge import Judge


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.percentile(np.asarray(values, dtype=np.float64), (10, 50, 90))
    return {"median": float(middle), "p10": float(low), "p90": float(high)}


def _quality(metrics: Sequence[Metric], lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The figures of all metrics over the samples of a row; those of sets come later."""
    values = [line["metrics"] for line in lines]
    found: dict[str, Any] = {ACCURACY: {}}
    for metric in metrics:
        if metric.per is Per.SET:
            found[metric.key] = None
        for figure in metric.numbers() if metric.per is Per.SAMPLE else ():
            place = found
            *groups, last = metric.path(figure)
            for key in groups:
                place = place.setdefault(key, {})
            place[last] = metric.figure(figure, values)
    return found


def _by_config(run: dict[str, Any], lines: Sequence[dict[str, Any]]) -> Lines:
    """Lines by row and sample, in the order of the run, whoever made them."""
    samples = make_samples(run.get("prompts") or [], run.get("seeds") or [])
    places = {sample.id: place for place, sample in enumerate(samples)}
    found: Lines = {}
    for line in sorted(lines, key=lambda line: places.get(line["sample"], len(places))):
        found.setdefault(line["config"], {})[line["sample"]] = line
    return found


def _timed(config: RunConfig, lines: dict[str, Any], machines: Machines, share: float) -> Timed:
    """The speed-up of one row, from its pairs."""
    if config.role is Role.DENSE:
        return Timed(State.OK, "", dict.fromkeys(("median", "p25", "p75"), 1.0), 1.0, 1.0)
    beside = [line for line in lines.values() if line["pairs"]]
    found = timed(
        [[Pair.from_dict(pair) for pair in line["pairs"]] for line in beside],
        [line["computed_share"] for line in beside],
        [1 / line["least_share"] if line.get("least_share") else None for line in beside],
        [machines.dense(line) for line in beside],
        config.sparse or share < WHOLE or config.role not in JUDGED,
    )
    apart = machines.apart(config.id)
    if apart and found.state in (State.OK, State.NOISY):  # what is refused stays refused
        return replace(found, state=State.NOISY, reason=apart)
    return found


def _efficiency(speedup: dict[str, float] | None, share: float, sparse: bool) -> float | None:
    # Of sparse attention the computed share does not know.
    return None if speedup is None or sparse else speedup["median"] * share


def _row(
    config: RunConfig,
    lines: dict[str, dict[str, Any]],
    machines: Machines,
    warmup: dict[str, Any],
    metrics: Sequence[Metric],
) -> dict[str, Any]:
    """Figures of one row over its samples."""
    share = float(np.mean([line["computed_share"] for line in lines.values()]))
    took = _timed(config, lines, machines, share)
    shown = took.state in (State.OK, State.NOISY)
    speedup = took.speedup if shown else None
    inside = took.denoiser if shown else None
    if config.role is Role.DENSE:
        inside = dict.fromkeys(("median", "p25", "p75"), 1.0)
    denoise = [line["denoise_seconds"] for line in lines.values() if line.get("denoise_seconds")]
    peaks = [line["peak_memory_bytes"] for line in lines.values() if line.get("peak_memory_bytes")]
    return {
        "n": len(lines),
        **_quality(metrics, lines.values()),
        "seconds": {
            **_spread([line["seconds"] for line in lines.values()]),
            "warmup": warmup.get("seconds"),
        },
        "denoise_seconds": _spread(denoise) if denoise else None,
        "speedup": speedup,
        "timing": took.to_dict(),
        "computed_share": share,
        "efficiency": _efficiency(speedup, share, config.sparse),
        "denoiser_speedup": inside,
        "denoiser_efficiency": _efficiency(inside, share, config.sparse),
        "peak_memory_bytes": max(peaks, default=0),
    }


def _measured(run: dict[str, Any], lines: Lines) -> list[Metric]:
    """The metrics of a run; of one that describes none, what else its results hold are scores."""
    if "metrics" in run:
        return measured(run)
    known = {metric.key for metric in measured(run)}
    found = (line["metrics"] for group in lines.values() for line in group.values())
    return measured(run, [key for values in found for key in values if key not in known])


def _unjudged(metrics: Sequence[Metric], lines: Lines) -> dict[str, str]:
    """Metrics that were registered after the samples were judged."""
    found = {key for g in lines.values() for line in g.values() for key in line["metrics"]}
    words = f"registered after the samples were judged: delete {store.RESULTS}, run the same again"
    return {
        metric.key: words
        for metric in metrics
        if metric.per is Per.SAMPLE and Need.JUDGE not in metric.needs and metric.key not in found
    }


def _table_timing(configs: Sequence[RunConfig], lines: Lines, machines: Machines) -> dict[str, Any]:
    """What the whole table's timing is worth: another seed must take as long as dense."""
    control = next((c for c in configs if c.role is Role.OTHER_SEED and c.id in lines), None)
    took = Timed(State.UNTIMED, "", None)
    if control is not None:
        took = _timed(control, lines[control.id], machines, 1.0)
    trusted, words = control_state(took)
    return {
        "trusted": trusted,
        "text": words,
        "control": took.speedup,
        "dense": machines.all_dense,
    }


def _failures(folder: Path, lines: Lines) -> list[dict[str, Any]]:
    """The last failure of each generation that is still missing."""
    failed = read_all(folder / store.FAILURES, FAILURE)
    failures = {(line["config"], line["sample"]): line["error"] for line in failed}
    return [
        {"config": config, "sample": sample, "error": error}
        for (config, sample), error in failures.items()
        if sample not in lines.get(config, {})
    ]


def summarise(folder: str | Path, judge: Judge | None = None) -> dict[str, Any]:
    """The content of `summary.json` of a run's folder.

    Args:
        folder: with `run.json` and `results.jsonl`.
        judge: for FID and KID; None leaves them out.

    Raises:
        UsageError: files missing or damaged, or no dense result.
    """
    folder = Path(folder)
    run = read_run(folder / store.RUN)
    lines = _by_config(run, read_all(folder / store.RESULTS, RESULT))
    warmups = {w["config"]: w for w in read_all(folder / store.WARMUPS, WARMUP)}
    configs = configs_of(run)
    dense_id = next((c.id for c in configs if c.role is Role.DENSE), None)
    if dense_id is None or not lines.get(dense_id):
        raise UsageError(f"{folder} holds no dense result: run the same command again")
    machines = Machines(run, lines, dense_id)
    metrics = _measured(run, lines)
    limits = Limits(run, warmups.get(dense_id, {}))
    rows = {
        c.id: _row(c, lines[c.id], machines, warmups.get(c.id, {}), metrics)
        | limits.row(lines[c.id])
        for c in configs
        if c.id in lines
    }
    if limits.beaten:
        rows = {name: row | {"floor_share": None} for name, row in rows.items()}
    counts: dict[str, Any] = {}
    missing: dict[str, str] = {}
    if judge is not None:
        counts, few = add_distances(folder, lines, rows, dense_id, judge)
        missing = judge.not_available | _unjudged(metrics, lines) | few
    table = _table_timing(configs, lines, machines)
    points = pareto.points_of(configs, rows, table["trusted"])
    found = verdicts(points, rows)
    kind = Kind.TABLE_NOISE if table["trusted"] else Kind.NOISY_TABLE
    level = Level.NOTE if table["trusted"] else Level.WARNING
    words = table["text"][:1].upper() + table["text"][1:] + "."
    return {
        "configs": rows,
        "timing": table,
        "matched": pareto.matched(points),
        "dominated": pareto.dominated(points),
        "headline": headline(points, found),
        "machines": machines.rows(),
        "limits": limits.described(),
        "verdicts": [
            v.to_dict() for v in (Verdict(kind, level, words), *machines.verdicts(configs), *found)
        ],
        "not_available": missing,
        "distances": counts,
        "failures": _failures(folder, lines),
    }


def write_summary(
    folder: Path,
    judge: Judge,
    unavailable: dict[str, str],
    dense_repeats: bool | None,
) -> dict[str, Any]:
    """Write `summary.json`.

    Args:
        folder: of the run.
        judge: of the run.
        unavailable: rows that could not run on this model, each with its reason.
        dense_repeats: whether dense came out bit-equal after all rows had run; None keeps what an
            earlier part of the run found.
    """
    summary = summarise(folder, judge)
    path = folder / store.SUMMARY
    if dense_repeats is None and path.exists():
        before = read_record(path, SUMMARY, "delete that file and run the same command again")
        dense_repeats = before.get("dense_repeats")
        # Peers that could not run are not tried again by a run that had nothing left to do.
        unavailable = before.get("unavailable", {}) | unavailable
    summary["unavailable"] = unavailable
    summary["dense_repeats"] = dense_repeats
    if dense_repeats is False:
        words = (
            "Warning: dense did not come out bit-equal after the other rows had run: this device "
            "is not deterministic, or a row left something behind."
        )
        changed = Verdict(Kind.DENSE_CHANGED, Level.WARNING, words)
        summary["verdicts"].insert(0, changed.to_dict())
    write_json(path, summary)
    return summary
