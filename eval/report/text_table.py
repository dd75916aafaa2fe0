"""The figures as text: GitHub Markdown for a file, and the few that matter for a terminal."""

from __future__ import annotations

from ditaccel.eval.measure.pairs import State
from ditaccel.eval.metrics.base import Shown
from ditaccel.eval.report.columns import Column, cell_text, columns_of, small_n
from ditaccel.eval.report.load import Evaluation
from ditaccel.eval.specs import RunConfig
from ditaccel.eval.summary.verdicts import Missing


def markdown_rows(evaluation: Evaluation) -> str:
    """The compact table as GitHub Markdown, one line per configuration, with notes below."""
    columns = [c for c in columns_of(evaluation) if c.shown is not Shown.PAGE]

    def safe(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    lines = [
        "| configuration | " + " | ".join(c.title for c in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for config in evaluation.configs:
        cells = [" ".join(filter(None, cell_text(evaluation, config, c))) or "–" for c in columns]
        failed = evaluation.failed(config.id)
        name = safe(config.label) + (f" ({len(failed)} failed)" if failed else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    smallest = min((evaluation.number(c, "n") or 0) for c in evaluation.configs)
    notes = [f"{smallest:.0f} samples per configuration"]
    groups: dict[str, list[str]] = {}
    for column in columns:
        if small_n(column, smallest):
            groups.setdefault(column.few, []).append(column.title)
    notes += [f"{', '.join(titles)} at this N: {few}" for few, titles in groups.items()]
    timing = evaluation.summary.get("timing") or {}
    if timing.get("text"):
        notes.append(safe(str(timing["text"])))
    device = evaluation.run.get("device") or {}
    if device.get("name"):
        notes.append(f"device: {safe(str(device['name']))}")
    return "\n".join([*lines, "", "; ".join(notes) + ".", ""])


def _cell(evaluation: Evaluation, config: RunConfig, column: Column) -> str:
    text, tail = cell_text(evaluation, config, column)
    return " ".join(filter(None, (text, tail))) or "–"


def terminal_table(evaluation: Evaluation) -> list[str]:
    """The main figures in aligned columns.

    A row that skips nothing is not a result: it has words in place of a speed-up.
    """
    columns = [c for c in columns_of(evaluation) if c.shown is Shown.TERMINAL]
    rows = [["configuration", *(", ".join(filter(None, (c.title, c.unit))) for c in columns)]]
    for config in evaluation.configs:
        failed = len(evaluation.failed(config.id))
        name = config.label + (f" ({failed} failed)" if failed else "")
        rows.append([name, *(_cell(evaluation, config, column) for column in columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    for config in evaluation.configs:
        if evaluation.state(config) is State.IMPOSSIBLE:
            lines.append(f"{config.label}: {evaluation.stats(config)['timing']['reason']}")
    return lines


def main_lines(evaluation: Evaluation) -> list[str]:
    """What a reader should take along: the noise of the table, and the best row's verdict."""
    head = evaluation.summary.get("headline") or {}
    verdicts = evaluation.summary["verdicts"]
    lines = [v["text"] for v in verdicts if v.get("config") is None]
    if head.get("missing"):
        why = Missing(head["missing"]).text
        return [*lines, f"{why[:1].upper()}{why[1:]}."]
    best = [v["text"] for v in verdicts if v.get("config") == head.get("config")]
    return [*lines, *(f"Best row: {words}" for words in best if head.get("config"))]
