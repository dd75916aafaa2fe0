"""The report for people: short as text and in a notebook, and in full."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from .. import config as configs
from ..caching.engine.budget import size
from .data import CallRecord, ReportData

# What the short form shows at most.
LINES = 25
_BRANCHES, _NOTES, _WARNINGS, _SIGNS = 6, 2, 3, 100


def summary(report: ReportData) -> list[str]:
    """The report in at most `LINES` lines."""
    lines = _head(report)
    if report.calls and "cache" in report.config:
        lines += _table(report, _BRANCHES)
    for log in report.attention:
        lines.append(log.headline())
        if log.density < 1:
            lines.append(f"  along the steps, in tenths (# = all): {log.along_steps()[:_SIGNS]}")
    lines += [log.headline() for log in report.call_logs]
    lines += _shortened([f"Assumed: {a}" for a in report.assumed], _NOTES)
    lines += _shortened([f"Note: {note}" for note in report.notes], _NOTES)
    lines += _shortened([f"Warning: {w}" for w in reversed(report.warnings)], _WARNINGS)
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], "(cut short)"]
    if report.attention or len(report.warnings) > _WARNINGS or len(lines) == LINES:
        lines[-1] += " (all of it: print(ditaccel.report(pipe).details()))"
    return lines


def details(report: ReportData) -> list[str]:
    """The report in full."""
    lines = _head(report, whole=True)
    if report.calls and "cache" in report.config:
        lines += _table(report, None)
    for log in report.attention:
        lines += log.lines()
    lines += [log.headline() for log in report.call_logs]
    lines += [f"Assumed: {a}" for a in report.assumed]
    lines += [f"Note: {note}" for note in report.notes]
    lines += [f"Warning: {w}" for w in report.warnings]
    return lines


def _shortened(lines: Sequence[str], most: int) -> list[str]:
    more = len(lines) - most
    return [*lines[:most], *([f"  (and {more} more)"] if more > 0 else [])]


def _head(report: ReportData, whole: bool = False) -> list[str]:
    off = "" if report.is_on else " (off now)"
    lines = [f"ditaccel report: {report.family}, {report.method or 'no method'}{off}"]
    for kind in configs.KINDS:
        options = dict(report.config.get(kind) or {})
        if not options:
            continue
        if whole:
            del options["method"]
            lines.append("  " + ", ".join(f"{k}={v}" for k, v in options.items()))
        else:
            given = {k: v for k, v in options.items() if k not in report.filled}
            lines.append("  " + configs.method_spec(configs.method_from_dict(given)))
    if report.filled:
        own = ", ".join(f"{k}={v}" for k, v in report.filled.items())
        lines.append(f"  (not given, so {report.family}'s own: {own})")
    if report.step_choice is not None:
        lines.append(f"Steps: {report.step_choice}.")
    lines.append(report.verdict())
    lines += _by_transformer(report)
    lines += _by_module(report, whole)
    lines += _time(report)
    if report.calls and "cache" in report.config:
        lines.append(_memory(report))
        if report.correction:
            lines.append(f"Gap correction: {report.correction}.")
        lines += _quality(report)
        drift = report.drift
        if drift is not None and drift.has_left:
            lines.append(f"Drift: {drift}.")
    return lines


def _by_transformer(report: ReportData) -> list[str]:
    """What each of several transformers did in the last generation (the experts of Wan 2.2)."""
    parts: dict[str, list[CallRecord]] = {}
    for call in report.newest:
        parts.setdefault(call.transformer, []).append(call)
    if len(parts) < 2 or "cache" not in report.config:
        return []
    shares = (
        f"{name} {100 * sum(c.share for c in calls) / len(calls):.0f} % in "
        f"{_counted(len({c.step for c in calls}), 'step')}"
        for name, calls in parts.items()
    )
    return [f"Computation by transformer: {', '.join(shares)}."]


def _by_module(report: ReportData, whole: bool = False) -> list[str]:
    """How often modules were computed: by what they are, in full by their blocks too."""
    kinds: dict[str, list[float]] = {}
    for name, share in report.modules.items():
        # the number of the block is what modules of one kind differ by
        parts = [part for part in name.split(".") if not part.isdigit()]
        kinds.setdefault(".".join(parts), []).append(share)
    if not kinds or min(report.modules.values()) == 1.0:
        return []
    shares = (f"{name} {100 * sum(each) / len(each):.0f} %" for name, each in kinds.items())
    lines = [f"Modules computed: {', '.join(shares)}."]
    if whole:
        lines += [f"  {name}: {100 * share:.0f} %" for name, share in report.modules.items()]
    return lines


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def _memory(report: ReportData) -> str:
    parts = [f"{size(held)} {use}" for use, held in report.memory.items() if held]
    if parts:
        parts[0] += f" ({report.tensors_per_branch} {report.tensors} in each branch)"
    return f"Cache: {size(report.cache_bytes)} at most: {', '.join(parts) or 'nothing was kept'}."


def _quality(report: ReportData) -> list[str]:
    """What the newest generation's forecasts cost in quality."""
    if not any(call.action == "forecast" for call in report.newest):
        return []  # which the verdict says
    if report.expected is None:
        return [
            "Quality: not estimated: the error of these forecasts is not measured "
            "(correction='auto' measures it where the scheduler's steps are known and the last one "
            "is computed)."
        ]
    fewer = report.step_choice is not None and report.step_choice.run is not None
    of = " of as many steps" if fewer else ""
    return [
        f"Quality: expect {report.expected}{of}; calibrated on the shipped samples only (error "
        f"left in the latents: {report.left:.2g})."
    ]


def _time(report: ReportData) -> list[str]:
    timing = report.timing
    if timing is None:
        return []
    line = f"Time: {_seconds(timing.seconds)} in {timing.calls} transformer calls"
    if timing.forecast is not None and timing.computed is not None:
        line += (
            f"; {_seconds(timing.computed)} per computed call, {_seconds(timing.forecast)} per "
            "forecast one"
        )
    if timing.speedup is not None:
        line += (
            f"; about {timing.speedup:.2f}x as fast as computing each (estimated from these; "
            "`ditaccel eval` measures the whole pipeline)"
        )
    return [f"{line}."]


def _seconds(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1.0:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _rows(calls: Iterable[CallRecord]) -> dict[str, tuple[str, str]]:
    """Per transformer and branch: a sign per step, and how many were computed."""
    groups: dict[str, list[CallRecord]] = {}
    for call in calls:
        groups.setdefault(f"{call.transformer} {call.branch}", []).append(call)
    rows = {}
    for name, group in groups.items():
        marks = {c.step: "#" if c.action == "compute" else "." for c in group}
        text = "".join(marks.get(step, " ") for step in range(max(marks) + 1))
        computed = sum(c.action == "compute" for c in group)
        rows[name] = (text, f"{computed}/{len(group)} computed")
    return rows


def _table(report: ReportData, most: int | None) -> list[str]:
    """The last generation: a hit map per transformer and branch, then the causes."""
    calls = report.newest
    rows = _rows(calls)
    width = max(map(len, rows))
    branches = f"{len(rows)} branch(es)"
    lines = [f"Last generation, one sign per step (# computed, . forecast, {branches}):"]
    shown = list(rows.items())
    for name, (signs, computed) in shown[:most]:
        if most is not None and len(signs) > _SIGNS:
            signs = f"{signs[:_SIGNS]} (of {len(signs)} steps)"
        lines.append(f"  {name:<{width}}  {signs}  {computed}")
    if most is not None and len(shown) > most:
        lines.append(f"  (and {len(shown) - most} more branches)")
    for (action, cause), steps in report.causes.items():
        errors = [
            c.error for c in calls if c.error is not None and (c.action, c.cause) == (action, cause)
        ]
        span = f", error {min(errors):.2g} to {max(errors):.2g}" if errors else ""
        lines.append(f"  {action:<8} {steps:>4} step(s): {cause.value}{span}")
    return lines


def html_of(report: ReportData) -> str:
    """The short report as HTML without scripts: text, and the hit map as coloured bars."""
    rows = ""
    if report.calls and "cache" in report.config:
        found = list(_rows(report.newest).items())[:_BRANCHES]
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>"
            f"{_bar(signs[: 2 * _SIGNS])}</td><td>{escape(computed)}</td></tr>"
            for name, (signs, computed) in found
        )
        rows += "<tr><td></td><td colspan='2'>a step each: dark computed, light forecast</td></tr>"
    head = _head(report)
    causes: dict[str, list[str]] = {}
    for (action, cause), steps in report.causes.items() if rows else ():
        causes.setdefault(action, []).append(f"{cause.value} {steps}")
    notes = [f"Steps by cause, {action}: {', '.join(each)}." for action, each in causes.items()]
    notes += [log.headline() for log in report.attention]
    notes += [log.headline() for log in report.call_logs]
    notes += [f"Note: {note}" for note in report.notes[:_NOTES]]
    notes += [f"Warning: {w}" for w in report.warnings[-_WARNINGS:]]
    paragraphs = "".join(f"<div>{escape(line)}</div>" for line in (*head[1:], *notes))
    table = f"<table style='font-size:90%'>{rows}</table>" if rows else ""
    return f"<div><b>{escape(head[0])}</b>{paragraphs}{table}</div>"


def _bar(signs: str) -> str:
    """A strip: computed steps dark on a light ground."""
    steps, begin = "", 0
    for i in range(1, len(signs) + 1):
        if i == len(signs) or signs[i] != signs[begin]:
            if signs[begin] == "#":
                steps += f"M{4 * begin} 0h{4 * (i - begin)}v12h-{4 * (i - begin)}z"
            begin = i
    return (
        f"<svg width='{4 * len(signs)}' height='12' style='background:#d5dbe3'>"
        f"<path d='{steps}' fill='#4c78a8'/></svg>"
    )
