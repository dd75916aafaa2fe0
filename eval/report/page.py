"""One self-contained HTML page from an evaluation folder, a Markdown table and a README plot."""

from __future__ import annotations

import json
from pathlib import Path

from ditaccel.eval.report.gallery import gallery
from ditaccel.eval.report.load import Evaluation, load_evaluation
from ditaccel.eval.report.markup import Markup, el
from ditaccel.eval.report.pareto_plot import pareto, pareto_png
from ditaccel.eval.report.series import pareto_marks
from ditaccel.eval.report.shell import document, write_text
from ditaccel.eval.report.steps import hit_maps
from ditaccel.eval.report.table import full_table, limits, machines
from ditaccel.eval.report.text_table import markdown_rows, terminal_table
from ditaccel.eval.report.verdict import headline, matched_table


def _pareto(evaluation: Evaluation) -> Markup | None:
    if not pareto_marks(evaluation):
        return None
    return el(
        "div",
        pareto(evaluation, 470),
        el(
            "p",
            "Up and to the right is better. A method earns its place only above the dashed "
            "baseline: there it beats simply taking fewer steps. Thin bars: the middle half of the "
            "samples' speed-ups, and down to the 5th percentile of PSNR. Faded: noisy timing.",
            cls="muted",
        ),
    )


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _provenance(evaluation: Evaluation) -> Markup:
    run = evaluation.run
    facts: dict[str, object] = {
        "command": run.get("command"),
        "model": run.get("model"),
        "family": run.get("family"),
        "task": run.get("task"),
        "commit": run.get("commit"),
    }
    groups = {name: run.get(name) for name in ("call", "device", "versions")}
    for title, group in {"feature extractor": run.get("features"), **groups}.items():
        if isinstance(group, dict):
            facts[title] = ", ".join(f"{k} {_value(v)}" for k, v in group.items() if v is not None)
        else:
            facts[title] = group
    facts["seeds"] = ", ".join(str(seed) for seed in run.get("seeds") or [])
    rows = [
        el("div", el("dt", name), el("dd", _value(value)))
        for name, value in facts.items()
        if value not in (None, "")
    ]
    prompts = run.get("prompts") or []
    listing = el(
        "details",
        el("summary", f"{len(prompts)} prompts"),
        el("ol", [el("li", str(prompt)) for prompt in prompts]),
    )
    specs = el(
        "details",
        el("summary", f"{len(evaluation.configs)} configurations"),
        el("ul", [el("li", c.label, ": ", el("code", c.spec)) for c in evaluation.configs]),
    )
    return el("div", el("dl", rows), listing if prompts else None, specs)


def _section(anchor: str, title: str, body: Markup | None) -> Markup | None:
    return None if body is None else el("section", el("h2", title), body, id=anchor)


def _page(evaluation: Evaluation) -> str:
    run = evaluation.run
    name = Path(str(run.get("model", "model"))).name
    sections = {
        "verdict": ("Verdict", headline(evaluation)),
        "pareto": ("Speed against quality", _pareto(evaluation)),
        "matched": ("Speed at equal quality", matched_table(evaluation)),
        "table": ("All figures", full_table(evaluation)),
        "machines": ("Speed on each machine", machines(evaluation)),
        "limits": ("Physical limits", limits(evaluation)),
        "pictures": ("Pictures, worst first", gallery(evaluation)),
        "steps": ("Which steps were computed", hit_maps(evaluation)),
        "provenance": ("How this was made", _provenance(evaluation)),
    }
    if evaluation.moving:
        sections["pictures"] = ("Videos, worst first", sections["pictures"][1])
    links = [el("a", t, href=f"#{key}") for key, (t, body) in sections.items() if body is not None]
    device = (run.get("device") or {}).get("name")
    subtitle = " · ".join(str(part) for part in (run.get("task"), device) if part)
    header = el(
        "header",
        el("p", "ditaccel evaluation", cls="kicker"),
        el("h1", name),
        el("p", subtitle, cls="muted"),
        el("nav", links),
    )
    main = [_section(key, *pair) for key, pair in sections.items()]
    return document(f"{name}: ditaccel evaluation", header, main)


def markdown_table(out_dir: str | Path) -> str:
    """The main figures as a GitHub Markdown table.

    Args:
        out_dir: a folder that `ditaccel eval` wrote.

    Raises:
        UsageError: the folder's files are missing or damaged.
    """
    return markdown_rows(load_evaluation(out_dir))


def plain_table(out_dir: str | Path) -> str:
    """The few figures that matter, in aligned columns for a terminal.

    Args:
        out_dir: a folder that `ditaccel eval` wrote.

    Raises:
        UsageError: the folder's files are missing or damaged.
    """
    return "\n".join(terminal_table(load_evaluation(out_dir)))


def write_pareto_png(out_dir: str | Path, path: str | Path) -> Path:
    """Draw quality against speed as a PNG on white.

    Args:
        out_dir: a folder that `ditaccel eval` wrote.
        path: where the picture goes.

    Raises:
        UsageError: the folder's files are missing or damaged, or hold nothing to plot.
    """
    return pareto_png(load_evaluation(out_dir), path)


def write_report(out_dir: str | Path) -> Path:
    """Write `report.html` and `table.md` next to the results.

    The page is one file: it loads nothing and can be mailed or archived.

    Args:
        out_dir: a folder that `ditaccel eval` wrote; it gets the two files.

    Returns:
        Path of `report.html`.

    Raises:
        UsageError: a file is missing, damaged, of another schema, or holds no result.
    """
    evaluation = load_evaluation(out_dir)
    page = _page(evaluation)
    write_text(evaluation.folder / "table.md", markdown_rows(evaluation))
    return write_text(evaluation.folder / "report.html", page)
