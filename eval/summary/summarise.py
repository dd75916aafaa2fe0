"""results.jsonl into summary.json: distributions, distances, matched speeds and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ditaccel.errors import UsageError
from ditaccel.io.checked import read_record
from ditaccel.io.files import write_json

from .. import store
from ..measure.pairs import WHOLE, Dense, Pair, State, Timed, control_state, timed
from ..measure.timing import Timing
from ..metrics.fid import FEWEST, few_samples_note, fid, fid_error
from ..metrics.kid import kid, kid_error
from ..metrics.psnr import pooled
from ..records import FAILURE, RESULT, SUMMARY, WARMUP, read_all, read_run
from . import pareto
from .verdicts import Kind, Level, Verdict, headline, verdicts

if TYPE_CHECKING:
    from ..judge import Judge

_ACCURACY = ("colour", "shape", "direction")
# Two pictures of the same scene, a little apart, do not fall below; another picture does.
KEPT_DB = 25.0
Lines = dict[str, dict[str, dict[str, Any]]]


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.percentile(np.asarray(values, dtype=np.float64), (10, 50, 90))
    return {"median": float(middle), "p10": float(low), "p90": float(high)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _by_config(lines: Sequence[dict[str, Any]]) -> Lines:
    found: Lines = {}
    for line in lines:
        found.setdefault(line["config"], {})[line["sample"]] = line
    return found


def _pairs(line: dict[str, Any]) -> list[Pair]:
    return [Pair.from_dict(pair) for pair in line["pairs"]]


def _dense_runs(lines: Lines, dense_id: str) -> list[Timing]:
    """Every dense run of the comparison: the samples' own, and those beside other rows."""
    own = [Timing.from_dict(line["timing"]) for line in lines[dense_id].values()]
    return own + [p.dense for group in lines.values() for x in group.values() for p in _pairs(x)]


def _timed(config: dict[str, Any], lines: dict[str, Any], dense: Dense, share: float) -> Timed:
    """The speed-up of one row, from its pairs."""
    if config["role"] == "dense":
        return Timed(State.OK, "", dict.fromkeys(("median", "p25", "p75"), 1.0), 1.0, 1.0)
    sparse = bool(config.get("sparse"))
    beside = [line for line in lines.values() if line["pairs"]]
    return timed(
        [_pairs(line) for line in beside],
        [line["computed_share"] for line in beside],
        [1 / line["least_share"] if line.get("least_share") else None for line in beside],
        dense,
        sparse or share < WHOLE or config["role"] not in ("method", "peer"),
    )


def _efficiency(speedup: dict[str, float] | None, share: float, sparse: bool) -> float | None:
    # Of sparse attention the computed share does not know.
    return None if speedup is None or sparse else speedup["median"] * share


def _row(
    config: dict[str, Any], lines: dict[str, Any], dense: Dense, warmup: dict[str, Any]
) -> dict[str, Any]:
    """Figures of one row over its samples."""
    metrics = [line["metrics"] for line in lines.values()]
    psnrs = np.asarray([m["psnr"] for m in metrics], dtype=np.float64)
    share = float(np.mean([line["computed_share"] for line in lines.values()]))
    took = _timed(config, lines, dense, share)
    shown = took.state in (State.OK, State.NOISY)
    speedup = took.speedup if shown else None
    inside = took.denoiser if shown else None
    if config["role"] == "dense":
        inside = dict.fromkeys(("median", "p25", "p75"), 1.0)
    sparse = bool(config.get("sparse"))
    denoise = [line["denoise_seconds"] for line in lines.values() if line.get("denoise_seconds")]
    peaks = [line["peak_memory_bytes"] for line in lines.values() if line.get("peak_memory_bytes")]
    return {
        "n": len(lines),
        "psnr": {
            "mean": float(psnrs.mean()),
            "median": float(np.median(psnrs)),
            "p5": float(np.percentile(psnrs, 5)),
            "min": float(psnrs.min()),
            "pooled": pooled([m["mse"] for m in metrics]),
            "identical": sum(m["identical"] for m in metrics),
            "kept": float(np.mean(psnrs >= KEPT_DB)),
        },
        "ssim": _mean([m.get("ssim") for m in metrics]),
        "flip": _mean([m.get("flip") for m in metrics]),
        "lpips": _mean([m.get("lpips") for m in metrics]),
        "fid_dense": None,
        "fid_real": None,
        "kid_real": None,
        "accuracy": {name: _mean([m.get(name) for m in metrics]) for name in _ACCURACY},
        "seconds": {
            **_spread([line["seconds"] for line in lines.values()]),
            "warmup": warmup.get("seconds"),
        },
        "denoise_seconds": _spread(denoise) if denoise else None,
        "speedup": speedup,
        "timing": took.to_dict(),
        "computed_share": share,
        "efficiency": _efficiency(speedup, share, sparse),
        "denoiser_speedup": inside,
        "denoiser_efficiency": _efficiency(inside, share, sparse),
        "peak_memory_bytes": max(peaks, default=0),
    }


def _features(folder: Path, lines: Lines, judge: Judge) -> dict[str, dict[str, torch.Tensor]]:
    if judge.extractor is None:
        return {}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for slug, group in lines.items():
        frames = (store.load_frames(folder / line["media"]) for line in group.values())
        found[slug] = dict(zip(group, judge.extractor(frames), strict=True))
    return found


def _distances(
    rows: dict[str, Any], dense_id: str, features: dict[str, dict[str, torch.Tensor]], judge: Judge
) -> dict[str, Any]:
    """Fill the distances in; returns N of each kind, with a flag where it is small."""
    counts: dict[str, Any] = {}
    for slug, row in rows.items():
        own = features.get(slug, {})
        shared = [sample for sample in features.get(dense_id, {}) if sample in own]
        if len(shared) >= FEWEST:
            dense = torch.stack([features[dense_id][sample] for sample in shared])
            other = torch.stack([own[sample] for sample in shared])
            row["fid_dense"], row["fid_dense_error"] = fid(dense, other), fid_error(dense, other)
            counts["fid_dense"] = {"n": len(shared), "note": few_samples_note(len(shared))}
        if judge.real is not None and min(len(own), len(judge.real)) >= FEWEST:
            mine = torch.stack(list(own.values()))
            row["fid_real"], row["kid_real"] = fid(judge.real, mine), kid(judge.real, mine)
            row["fid_real_error"] = fid_error(judge.real, mine)
            row["kid_real_error"] = kid_error(judge.real, mine)
            smaller = min(len(own), len(judge.real))
            counts["fid_real"] = {"n": smaller, "note": few_samples_note(smaller)}
    return counts


def _too_few(judge: Judge, counts: dict[str, Any]) -> dict[str, str]:
    """Distances that were left out because so few samples tell nothing, with the reason."""
    if judge.extractor is None:
        return {}
    words = (
        f"a distance of distributions needs at least {FEWEST} samples of each kind, or it tells "
        "nothing but their number: more --seeds or prompts"
    )
    wanted = ("fid_dense",) if judge.real is None else ("fid_dense", "fid_real", "kid_real")
    return {key: words for key in wanted if key.replace("kid", "fid") not in counts}


def _table_timing(configs: Sequence[dict[str, Any]], lines: Lines, dense: Dense) -> dict[str, Any]:
    """What the whole table's timing is worth: another seed must take as long as dense."""
    control = next((c for c in configs if c["role"] == "other_seed" and c["id"] in lines), None)
    took = Timed(State.UNTIMED, "", None)
    if control is not None:
        took = _timed(control, lines[control["id"]], dense, 1.0)
    trusted, words = control_state(took)
    return {
        "trusted": trusted,
        "text": words,
        "control": took.speedup,
        "dense": {"runs": dense.n, "seconds": dense.seconds, "own": dense.own},
    }


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
    lines = _by_config(read_all(folder / store.RESULTS, RESULT))
    warmups = {w["config"]: w for w in read_all(folder / store.WARMUPS, WARMUP)}
    dense_id = next((c["id"] for c in run["configs"] if c["role"] == "dense"), None)
    if dense_id is None or not lines.get(dense_id):
        raise UsageError(f"{folder} holds no dense result: run the same command again")
    done = {(line["config"], line["sample"]) for group in lines.values() for line in group.values()}
    failed = read_all(folder / store.FAILURES, FAILURE)
    failures = {(f["config"], f["sample"]): f["error"] for f in failed}
    dense = Dense.of(_dense_runs(lines, dense_id))
    rows = {
        c["id"]: _row(c, lines[c["id"]], dense, warmups.get(c["id"], {}))
        for c in run["configs"]
        if c["id"] in lines
    }
    counts: dict[str, Any] = {}
    missing: dict[str, str] = {}
    if judge is not None:
        counts = _distances(rows, dense_id, _features(folder, lines, judge), judge)
        missing = dict(judge.not_available) | _too_few(judge, counts)
    table = _table_timing(run["configs"], lines, dense)
    points = pareto.points_of(run["configs"], rows, table["trusted"])
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
        "verdicts": [v.to_dict() for v in (Verdict(kind, level, words), *found)],
        "not_available": missing,
        "distances": counts,
        "failures": [
            {"config": config, "sample": sample, "error": error}
            for (config, sample), error in failures.items()
            if (config, sample) not in done
        ],
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
        unavailable = {
            k.removeprefix("config "): v
            for k, v in before.get("not_available", {}).items()
            if k.startswith("config ")
        } | unavailable
    summary["not_available"] |= {f"config {slug}": why for slug, why in unavailable.items()}
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
