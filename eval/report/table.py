"""The table of all figures, for the page."""

from __future__ import annotations

from ditaccel.eval.measure.pairs import State
from ditaccel.eval.report.columns import (
    Column,
    all_small,
    cell_text,
    columns_of,
    note_of,
    small_n,
    speedup_reason,
    speedup_words,
)
from ditaccel.eval.report.load import Evaluation
from ditaccel.eval.report.markup import Markup, breakable, el
from ditaccel.eval.report.series import series_styles
from ditaccel.eval.specs import Role, RunConfig

ROLES = {
    Role.DENSE: "reference",
    Role.OTHER_SEED: "same work",
    Role.FEWER_STEPS: "baseline",
    Role.METHOD: "method",
    Role.PEER: "peer",
}


def _header(evaluation: Evaluation, column: Column) -> Markup:
    """The header's button; it carries the small-N flag if the whole column would."""
    flag = "ⁿ" if all_small(evaluation, column) else ""
    about = column.about
    if column.key == "peak_memory_bytes":
        about = str(evaluation.run.get("memory") or about)
    button = el("button", column.title + flag, type="button", title=about)
    return el("th", button, scope="col", cls="num")


def _cell(evaluation: Evaluation, config: RunConfig, column: Column) -> Markup:
    value = evaluation.number(config, *column.path)
    if value is None:
        note, words = note_of(evaluation, column), ""
        if column.key == "speedup":
            words, note = speedup_words(evaluation, config), speedup_reason(evaluation, config)
        content = el("abbr", words or "n/a", title=note) if note else words or "–"
        return el("td", content, cls="num none", data_v="")
    text, tail = cell_text(evaluation, config, column)
    shown: str = text
    if column.key == "speedup" and evaluation.state(config) is State.NOISY:
        shown = el("abbr", text, title=speedup_reason(evaluation, config), cls="noisy")
    flag = small_n(column, evaluation.number(config, "n"))
    if all_small(evaluation, column):
        flag = None
    marks = el("abbr", "ⁿ", title=flag, cls="flag") if flag else None
    small = el("small", " ", tail) if tail else None
    return el("td", shown, marks, small, cls="num", data_v=repr(value))


def _beaten(evaluation: Evaluation, config: RunConfig) -> Markup | None:
    """A mark for a row that another row beats in both speed and quality."""
    winner = (evaluation.summary.get("dominated") or {}).get(config.id)
    label = next((c.label for c in evaluation.configs if c.id == winner), None)
    if label is None:
        return None
    return el(
        "small", " ", el("abbr", "beaten", title=f"{label} is both faster and closer to dense")
    )


def full_table(evaluation: Evaluation) -> Markup:
    """All figures as a sortable table, with notes on what is missing or weak."""
    columns = columns_of(evaluation)
    styles = series_styles(evaluation)
    head = [
        el("th", el("button", "configuration", type="button"), scope="col", cls="first"),
        *(_header(evaluation, column) for column in columns),
    ]
    body = []
    for config in evaluation.configs:
        style = styles.get(config.series)
        colour = f"--c:var({style.variable})" if style else "--c:var(--muted)"
        failed = evaluation.failed(config.id)
        warning = None
        if failed:
            reasons = "\n".join(f"{sample}: {reason}" for sample, reason in failed.items())
            warning = el("abbr", f"{len(failed)} failed", title=reasons, cls="bad")
        name = el(
            "th",
            el("span", cls="chip", style=colour), breakable(config.label),
            el("small", " ", ROLES[config.role]),
            _beaten(evaluation, config), warning,
            scope="row", cls="first", title=config.spec, data_v=config.label,
        )  # fmt: skip
        cells = [_cell(evaluation, config, column) for column in columns]
        body.append(el("tr", name, cells, cls=config.role))
    table = el(
        "table", el("thead", el("tr", head)), el("tbody", body), cls="sortable", id="figures"
    )
    counts = [evaluation.number(c, "n") or 0 for c in evaluation.configs]
    words = f"{max(counts):.0f} sample{'s' * (max(counts) != 1)} in each configuration"
    if min(counts) != max(counts):
        words = f"{min(counts):.0f} to {max(counts):.0f} samples in each configuration"
    hint = el("p", f"{words}; click a heading to sort, point at it for what it means.", cls="muted")
    scroll = el("div", table, cls="scroll", tabindex=0)
    return el("div", hint, scroll, _footnotes(evaluation, columns))


def limits(evaluation: Evaluation) -> Markup | None:
    """How close the rows come to what the machine can do, None where that was not measured."""
    text = (evaluation.summary.get("limits") or {}).get("text")
    if not text:
        return None
    rows = []
    for config in evaluation.configs:
        floor = evaluation.number(config, "floor_seconds")
        share = evaluation.number(config, "floor_share")
        if floor is not None and share is not None:
            bar = el("div", cls="bar", style=f"width:{min(100.0, 100 * share):.1f}%")
            rows.append(
                el(
                    "tr",
                    el("th", breakable(config.label), scope="row"),
                    el("td", f"{floor:.3g} s", cls="num"),
                    el("td", f"{share:.0%}", cls="num"),
                    el("td", bar, cls="wide"),
                )
            )
    names = ("configuration", "floor", "share of it reached", "")
    head = el("thead", el("tr", [el("th", name, scope="col") for name in names]))
    table = el("table", head, el("tbody", rows), cls="times") if rows else None
    return el("div", el("p", text, cls="muted"), table)


def machines(evaluation: Evaluation) -> Markup | None:
    """Speed-ups of each machine, None where there was one."""
    found = evaluation.summary.get("machines") or []
    if len(found) < 2:
        return None
    head = [
        el("th", "configuration", scope="col"),
        *(el("th", f"{one['name']} ({one['samples']} samples)", scope="col") for one in found),
    ]
    rows = [
        el(
            "tr",
            el("th", breakable(config.label), scope="row"),
            *(
                el("td", f"{one['speedup'][config.id]:.2f}×", cls="num")
                if config.id in one["speedup"]
                else el("td", "–", cls="num none")
                for one in found
            ),
        )
        for config in evaluation.configs
        if config.role is not Role.DENSE
    ]
    note = "Median speed-up over the samples that each machine has timed."
    table = el("table", el("thead", el("tr", head)), el("tbody", rows))
    return el("div", el("p", note, cls="muted"), el("div", table, cls="scroll", tabindex=0))


def _footnotes(evaluation: Evaluation, columns: list[Column]) -> Markup:
    lines: list[Markup] = []
    smallest = min((evaluation.number(c, "n") or 0) for c in evaluation.configs)
    small = [column for column in columns if small_n(column, smallest)]
    groups: dict[tuple[str, int], list[str]] = {}
    for column in small:
        groups.setdefault((column.few, column.enough), []).append(column.title)
    if groups:
        notes = [f"{', '.join(t)} (below {n}): {few}" for (few, n), t in groups.items()]
        lines.append(el("li", f"ⁿ small N ({smallest:.0f} samples). {'; '.join(notes)}."))
    missing: dict[str, list[str]] = {}
    for key, text in (evaluation.summary.get("not_available") or {}).items():
        missing.setdefault(str(text), []).append(key)
    for text, keys in missing.items():
        lines.append(el("li", el("b", f"{', '.join(keys)}: n/a. "), text))
    return el("ul", lines, cls="notes") if lines else el("div")
