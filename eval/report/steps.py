"""Hit maps: at which steps each configuration computed, and where it forecast."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ditaccel.eval.report.load import Evaluation
from ditaccel.eval.report.markup import Markup, breakable, el
from ditaccel.eval.specs import JUDGED, RunConfig

# Maps that a reader sees without a click.
OPEN = 6


@dataclass
class Cell:
    """What all samples did at one step of one branch."""

    computed: int = 0
    total: int = 0
    errors: list[float] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, action: str, reason: str, error: float | None) -> None:
        """Count one call."""
        self.total += 1
        self.computed += action == "compute"
        self.reasons[reason] += 1
        if error is not None:
            self.errors.append(float(error))

    def tip(self, step: int, branch: str) -> str:
        """What a tooltip says, one fact per line."""
        lines = [
            f"step {step} · {branch}",
            f"computed in {self.computed} of {self.total} samples",
        ]
        if self.errors:
            lines.append(f"gate error, median {statistics.median(self.errors):.3g}")
        known = [reason for reason, _ in self.reasons.most_common(2) if reason]
        if known:
            lines.append("reason: " + ", ".join(known))
        return "\n".join(lines)


def _grid(rows: list[dict[str, Any]]) -> dict[str, dict[int, Cell]]:
    """Cells by branch, then step."""
    grid: dict[str, dict[int, Cell]] = {}
    for row in rows:
        for step, branch, action, reason, error in row.get("calls") or []:
            cell = grid.setdefault(str(branch), {}).setdefault(int(step), Cell())
            cell.add(action, str(reason or ""), error)
    return grid


def _map(config: RunConfig, rows: list[dict[str, Any]], share: float | None) -> Markup:
    # A configuration without a label of its own is called by its spec already.
    code = el("code", " ", breakable(config.spec)) if config.spec != config.label else None
    title = el("h3", breakable(config.label), code)
    grid = _grid(rows)
    if not grid:
        return el(
            "div", title, el("p", "No step record: this configuration reports none.", cls="muted")
        )
    steps = sorted({step for cells in grid.values() for step in cells})
    header = [
        el("span", step if step % 5 == 0 else "", cls="step", aria_hidden="true") for step in steps
    ]
    lines = [el("span", cls="branch"), *header]
    for branch, cells in grid.items():
        lines.append(el("span", branch, cls="branch"))
        for step in steps:
            cell = cells.get(step)
            if cell is None:
                lines.append(el("span", cls="cell none"))
                continue
            part = round(cell.computed / cell.total, 3)
            kind = "cell all" if part == 1 else "cell" if part else "cell zero"
            lines.append(el("span", cls=kind, style=f"--p:{part}", data_tip=cell.tip(step, branch)))
    calls = [cell for cells in grid.values() for cell in cells.values()]
    hits = sum(cell.computed for cell in calls)
    total = sum(cell.total for cell in calls)
    samples = len(rows)
    words = f"{hits} of {total} calls computed over {samples} sample{'s' * (samples != 1)}"
    if hits == total:
        words += ": nothing was skipped"
    if share is not None:
        words += f"; {share:.0%} of the blocks' work was done"
    picture = el(
        "div", lines, cls="hits", role="img", style=f"--n:{len(steps)}",
        aria_label=f"{config.label}: {words}",
    )  # fmt: skip
    return el("div", title, el("div", picture, cls="scroll"), el("p", words + ".", cls="muted"))


def hit_maps(evaluation: Evaluation) -> Markup | None:
    """One map per method or peer: rows are guidance branches, columns are steps.

    Returns:
        None if no configuration is a method or a peer.
    """
    maps = []
    for config in evaluation.configs:
        if config.role in JUDGED:
            rows = list(evaluation.rows.get(config.id, {}).values())
            maps.append(_map(config, rows, evaluation.number(config, "computed_share")))
    if not maps:
        return None
    legend = el(
        "p",
        el("span", cls="cell all"), " computed in every sample ",
        el("span", cls="cell", style="--p:0.5"), " in some ",
        el("span", cls="cell zero"), " forecast in every sample. Columns are steps, rows are "
        "guidance branches.",
        cls="legend",
    )  # fmt: skip
    shown, others = maps[:OPEN], maps[OPEN:]
    if not others:
        return el("div", el("div", legend, shown, cls="maps"))
    words = f"{len(others)} more configuration{'s' * (len(others) != 1)}"
    fold = el("details", el("summary", words), el("div", others, cls="maps"), cls="more")
    return el("div", el("div", legend, shown, cls="maps"), fold)
