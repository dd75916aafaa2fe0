"""What has become of a job: counts and times, while it runs and after."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from ..config import from_dict, spec_of
from ..io.progress import duration
from ..reports.audited import Outcome
from .audit import estimates, key_of
from .folder import DONE, FAILED, JobFolder
from .manifest import Item
from .workers.claims import STALE, host_id, on_this_host

PARTS = ("denoise", "decode", "encode", "wait")
_PACE = 30


def _active(folder: JobFolder) -> int:
    """Processes that seem to be at work: of this machine by number, of others by heartbeat."""
    count = 0
    for home in folder.workers.glob("*/"):
        if (home / "run.json").exists():
            continue  # a command that only watches its workers
        alive = on_this_host(home.name, host_id())
        if alive is None:
            try:
                alive = time.time() - (home / "alive").stat().st_mtime < STALE
            except OSError:
                alive = False
        count += alive
    return count


def hit_rate(lines: Sequence[dict[str, Any]]) -> float | None:
    """Share of transformer calls that were forecast; None where no cache was on."""
    steps = [line.get("steps") or {} for line in lines]
    calls = sum(s.get("calls", 0) for s in steps)
    return sum(s.get("forecast", 0) for s in steps) / calls if calls else None


def summarise(
    folder: JobFolder, items: Sequence[Item], lines: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Counts, times and failures of some items.

    Args:
        folder: of the job.
        items: that are meant.
        lines: their results so far (`JobFolder.merged`).

    Returns:
        Plain data, as JSON takes it.
    """
    done = [line for line in lines if line.get("status") == DONE]
    failed = [line for line in lines if line.get("status") == FAILED]
    seconds = {part: sum(float(line["seconds"].get(part, 0.0)) for line in done) for part in PARTS}
    each = [sum(float(line["seconds"].get(p, 0.0)) for p in PARTS[:3]) for line in done]
    target = (folder.job().get("audit") or {}).get("target")
    return {
        "out": str(folder.root),
        "items": len(items),
        "done": len(done),
        "failed": len(failed),
        "left": len(items) - len(done) - len(failed),
        "working": _active(folder),
        "seconds": seconds,
        "seconds_per_item": statistics.median(each) if each else None,
        "hit_rate": hit_rate(done),
        "seconds_left": _left(done, len(items) - len(lines)),
        "bytes": sum(file["bytes"] for line in done for file in line["files"]),
        "audits": audits_of(done, target),
        "failures": [
            {key: line.get(key) for key in ("id", "row", "name", "prompt", "kind", "reason")}
            for line in failed
        ],
    }


def audits_of(done: Sequence[dict[str, Any]], target: float | None) -> list[dict[str, Any]]:
    """What the audited items say of each config.

    Args:
        done: results of items.
        target: PSNR in dB that is asked for, None for none.
    """
    audited = [
        {"config": line.get("config"), "psnr": line["audit"]["psnr"]}
        for line in done
        if "psnr" in (line.get("audit") or {})
    ]
    configs = {key_of(line["config"]): line["config"] for line in audited}
    return [
        {
            "config": spec_of(from_dict(configs[key])),
            **found.to_dict(),
            "words": str(found),
            "target": target,
            "missed": target is not None and found.misses(target),
            "outcome": None if target is None else found.outcome(target),
        }
        for key, found in estimates(audited).items()
    ]


def _left(done: Sequence[dict[str, Any]], left: int) -> float | None:
    """Seconds to the end at the pace of the newest items, all workers together."""
    times = sorted(float(line["finished"]) for line in done)[-_PACE:]
    if len(times) < 3 or not left:
        return None
    return left * (times[-1] - times[0]) / (len(times) - 1)


def where_time_goes(seconds: dict[str, float]) -> str:
    """One line: how the work of all items divides up."""
    total = sum(seconds.values())
    if not total:
        return "nothing timed"
    parts = (f"{part} {100 * seconds[part] / total:.0f} %" for part in PARTS if seconds[part])
    return f"{', '.join(parts)} of {duration(total)}"


def describe(summary: dict[str, Any], said: Collection[str] = ()) -> list[str]:
    """The summary in plain lines.

    Args:
        summary: made by `summarise`.
        said: ids of failures whose reasons the user has just read: they are counted only.
    """
    lines = [
        f"{summary['done']} of {summary['items']} items done, {summary['failed']} failed, "
        f"{summary['left']} left"
        + (f"; {summary['working']} at work" if summary.get("working") else "")
    ]
    if summary.get("not_chosen"):
        lines.append(
            f"{summary['not_chosen']} more rows of the job file were not asked for (limit, filter)"
        )
    if summary["done"]:
        lines.append(f"work: {where_time_goes(summary['seconds'])}")
        lines.append(
            f"per item: {duration(summary['seconds_per_item'])} (median); files: "
            f"{summary['bytes'] / 1e6:.1f} MB"
        )
        if summary["hit_rate"] is not None:
            lines.append(f"transformer calls forecast: {100 * summary['hit_rate']:.0f} %")
    for found in summary.get("audits", ()):
        target = found["target"]
        came = "" if target is None else f": {Outcome(found['outcome']).words(target)}"
        lines.append(f"audit of {found['config']}: {found['words']}{came}")
    if summary.get("stopped"):
        lines.append(
            "stopped by the audit: give a safer config, or leave the audit's target out to continue"
        )
    if summary.get("working") and summary["seconds_left"] is not None:
        lines.append(f"about {duration(summary['seconds_left'])} left")
    failures = [failure for failure in summary["failures"] if failure["id"] not in said]
    known = len(summary["failures"]) - len(failures)
    if known:
        lines.append(f"failed: {known} bad row{'s' if known > 1 else ''}, named at the start")
    reasons = Counter(failure["reason"] for failure in failures)
    for reason, count in reasons.most_common(10):
        rows = [str(f["row"]) for f in failures if f["reason"] == reason]
        which = ", ".join(rows[:5]) + (", …" if count > 5 else "")
        lines.append(f"failed: row{'s' if count > 1 else ''} {which}: {reason}")
    if len(reasons) > 10:
        lines.append(f"failed: {len(reasons) - 10} more reasons in {summary['out']}/results.jsonl")
    return lines
