"""A start page that leads to the reports of several models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ditaccel.eval.report.load import Evaluation
from ditaccel.eval.report.markup import Markup, el
from ditaccel.eval.report.pareto_plot import pareto
from ditaccel.eval.report.series import pareto_marks
from ditaccel.eval.report.shell import document, write_text
from ditaccel.eval.report.verdict import headline


def _entry(evaluation: Evaluation, page: Path) -> Markup:
    name = Path(str(evaluation.run.get("model", "model"))).name
    link = Path(os.path.relpath(evaluation.folder / "report.html", page.parent)).as_posix()
    plot = pareto(evaluation, 400) if pareto_marks(evaluation) else None
    return el(
        "section",
        el("h2", el("a", name, href=link)),
        el("p", str(evaluation.run.get("task", "")), cls="muted"),
        headline(evaluation),
        plot,
        el("p", el("a", "Full report with pictures, all figures and step maps", href=link)),
        id=name,
    )


def write_index(path: Path, evaluations: Sequence[Evaluation]) -> Path:
    """Write a page with one section per model; reports are linked relative to it.

    Args:
        path: the page.
        evaluations: their folders must hold `report.html`.

    Raises:
        UsageError: `path` cannot be written.
    """
    sections = [_entry(evaluation, path) for evaluation in evaluations]
    head = el(
        "header",
        el("p", "ditaccel evaluation", cls="kicker"),
        el("h1", "Speed and quality of the sample models"),
    )
    return write_text(path, document("ditaccel demo", head, sections))
