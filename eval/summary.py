"""results.jsonl into summary.json: distributions, distances, matched speeds and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ditaccel.errors import UsageError
from ditaccel.files import read_json, read_lines, write_json

from . import pareto, store
from .metrics.fid import few_samples_note, fid
from .metrics.kid import kid
from .metrics.psnr import pooled

if TYPE_CHECKING:
    from .judge import Judge

_ACCURACY = ("colour", "shape", "direction")
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


def _row(lines: dict[str, Any], dense: dict[str, Any], warmup: dict[str, Any]) -> dict[str, Any]:
    """Figures of one row over its samples."""
    metrics = [line["metrics"] for line in lines.values()]
    psnrs = np.asarray([m["psnr"] for m in metrics], dtype=np.float64)
    # Paired: a moment in which the machine was busy divides out of a ratio of neighbours.
    ratios = [dense[sample]["seconds"] / line["seconds"] for sample, line in lines.items()]
    share = float(np.mean([line["computed_share"] for line in lines.values()]))
    speedup = _spread(ratios)
    inside = [
        (dense[sample]["denoiser_seconds"], line["denoiser_seconds"])
        for sample, line in lines.items()
        # results of earlier versions have none
        if line.get("denoiser_seconds") and dense[sample].get("denoiser_seconds")
    ]
    denoiser_speedup = _spread([a / b for a, b in inside]) if inside else None
    denoise = [line["denoise_seconds"] for line in lines.values() if line.get("denoise_seconds")]
    return {
        "n": len(lines),
        "psnr": {
            "mean": float(psnrs.mean()),
            "p5": float(np.percentile(psnrs, 5)),
            "min": float(psnrs.min()),
            "pooled": pooled([m["mse"] for m in metrics]),
            "identical": sum(m["identical"] for m in metrics),
        },
        "ssim": _mean([m["ssim"] for m in metrics]),
        "flip": _mean([m["flip"] for m in metrics]),
        "lpips": _mean([m["lpips"] for m in metrics]),
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
        "computed_share": share,
        "efficiency": speedup["median"] * share,
        "denoiser_seconds": _spread([b for _, b in inside]) if inside else None,
        "denoiser_speedup": denoiser_speedup,
        "denoiser_efficiency": denoiser_speedup["median"] * share if denoiser_speedup else None,
        "peak_memory_bytes": max(line["peak_memory_bytes"] for line in lines.values()),
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
        if len(shared) >= 2:
            dense = torch.stack([features[dense_id][sample] for sample in shared])
            row["fid_dense"] = fid(dense, torch.stack([own[sample] for sample in shared]))
            counts["fid_dense"] = {"n": len(shared), "note": few_samples_note(len(shared))}
        if judge.real is not None and len(own) >= 2:
            mine = torch.stack(list(own.values()))
            row["fid_real"], row["kid_real"] = fid(judge.real, mine), kid(judge.real, mine)
            smaller = min(len(own), len(judge.real))
            counts["fid_real"] = {"n": smaller, "note": few_samples_note(smaller)}
    return counts


def summarise(folder: str | Path, judge: Judge | None = None) -> dict[str, Any]:
    """The content of `summary.json` of a run's folder.

    Args:
        folder: with `run.json` and `results.jsonl`.
        judge: for FID and KID; None leaves them out.

    Raises:
        UsageError: files missing or damaged, or no dense result.
    """
    folder = Path(folder)
    run = read_json(folder / store.RUN)
    lines = _by_config(read_lines(folder / store.RESULTS))
    warmups = {w["config"]: w for w in read_lines(folder / store.WARMUPS)}
    dense_id = next((c["id"] for c in run["configs"] if c["role"] == "dense"), None)
    dense = lines.get(dense_id or "")
    if not dense or dense_id is None:
        raise UsageError(f"{folder} holds no dense result: run the same command again")
    done = {(line["config"], line["sample"]) for group in lines.values() for line in group.values()}
    failures = {(f["config"], f["sample"]): f["error"] for f in read_lines(folder / store.FAILURES)}
    try:
        rows = {
            c["id"]: _row(lines[c["id"]], dense, warmups.get(c["id"], {}))
            for c in run["configs"]
            if c["id"] in lines
        }
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{folder / store.RESULTS} is damaged: a line lacks {error}; delete that line"
        ) from error
    counts: dict[str, Any] = {}
    if judge is not None:
        counts = _distances(rows, dense_id, _features(folder, lines, judge), judge)
    missing = dict(judge.not_available) if judge is not None else {}
    if judge is not None and judge.extractor is not None and "fid_dense" not in counts:
        missing["fid_dense"] = "a distribution needs at least 2 samples: more --seeds or prompts"
    summary: dict[str, Any] = {
        "configs": rows,
        "matched": pareto.matched(run["configs"], rows),
        "dominated": pareto.dominated(run["configs"], rows),
        "verdicts": pareto.verdicts(run["configs"], rows),
        "not_available": missing,
        "distances": counts,
        "failures": [
            {"config": config, "sample": sample, "error": error}
            for (config, sample), error in failures.items()
            if (config, sample) not in done
        ],
    }
    return summary


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
        before = read_json(path)
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
        summary["verdicts"].insert(
            0,
            "Warning: dense did not come out bit-equal after the other rows had run: this device "
            "is not deterministic, or a row left something behind.",
        )
    write_json(path, summary)
    return summary
