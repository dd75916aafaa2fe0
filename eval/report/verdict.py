"""The answer in plain words, and the comparison at equal quality."""

from __future__ import annotations

from typing import Any

from ditaccel.eval.metrics.psnr import CAP
from ditaccel.eval.report.load import Evaluation
from ditaccel.eval.report.markup import Markup, breakable, el
from ditaccel.eval.report.series import series_styles
from ditaccel.eval.specs import COMPARED, Role, RunConfig
from ditaccel.eval.summary.pareto import Where
from ditaccel.eval.summary.verdicts import Level, Missing

# Speed-ups closer than this are noise on a busy machine.
TIE = 0.03
# Verdicts that a reader sees without a click.
OPEN = 8
_ICONS = {Level.GOOD: "✓", Level.NOTE: "→", Level.WARNING: "!"}


def _matched(evaluation: Evaluation) -> list[dict[str, Any]]:
    return list(evaluation.summary.get("matched") or [])


def _at(rows: list[dict[str, Any]], level: float, role: str) -> list[dict[str, Any]]:
    return [
        row
        for row in rows
        if row["psnr"] == level and row["role"] == role and row.get("speedup") is not None
    ]


def _tile(value: str, words: str, kind: str = "") -> Markup:
    return el("div", el("strong", value), el("span", breakable(words)), cls=f"tile {kind}".strip())


def _quality(psnr: float | None) -> str:
    if psnr is None:
        return "PSNR not known"
    return "identical to dense" if psnr >= CAP else f"{psnr:.1f} dB to dense"


def _verdict_on(evaluation: Evaluation, config: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = evaluation.summary["verdicts"]
    return next((v for v in found if v.get("config") == config), {})


def _row_tile(evaluation: Evaluation, config: RunConfig, words: str, kind: str = "") -> Markup:
    """A measured row: its speed-up, and its quality in the words."""
    speed = evaluation.number(config, "speedup", "median")
    quality = _quality(evaluation.number(config, "psnr", "mean"))
    value = "–" if speed is None else f"{speed:.2f}×"
    return _tile(value, f"{words}{config.label}, {quality}", kind)


def _tiles(evaluation: Evaluation) -> list[Markup]:
    """The best row next to what it is compared with: measured rows, as the verdicts name them."""
    head = evaluation.summary.get("headline") or {}
    configs = {config.id: config for config in evaluation.configs}
    best, fewer, peer = (configs.get(str(head.get(key))) for key in ("config", "fewer", "peer"))
    tiles = []
    if best is not None:
        tiles.append(_row_tile(evaluation, best, "best row: ", "main"))
        level = _verdict_on(evaluation, best.id).get("fewer_psnr")
        if level is not None:
            tiles.append(_tile(f"{level:.1f} dB", "what fewer steps keep at the same time"))
        elif fewer is not None:
            tiles.append(_row_tile(evaluation, fewer, "nearest with fewer steps: "))
        if peer is not None:
            tiles.append(_row_tile(evaluation, peer, "best other tool: "))
    elif any(config.role is Role.METHOD for config in evaluation.configs):
        tiles.append(_tile("–", Missing(head.get("missing") or Missing.BEATEN).text, "main bad"))
        if fewer is not None:
            tiles.append(_row_tile(evaluation, fewer, "with fewer steps: "))
    samples = {row["sample"] for row in evaluation.results}
    count = f"sample{'s' * (len(samples) != 1)} in each of {len(configs)} configurations"
    tiles.append(_tile(str(len(samples)), count))
    return tiles


def _failures(evaluation: Evaluation) -> list[Markup]:
    """One warning per row that could not run, or that failed on a sample (or on all)."""
    unavailable = evaluation.summary.get("unavailable") or {}
    lines = []
    for listed in evaluation.run["configs"]:
        failed = evaluation.failed(listed["id"])
        if listed["id"] in unavailable:
            words = f"{listed['label']}: not available: {unavailable[listed['id']]}."
        elif failed:
            total = len(set(failed) | set(evaluation.rows.get(listed["id"], {})))
            reason = next(iter(failed.values()))
            words = f"{listed['label']}: {len(failed)} of {total} samples failed ({reason})."
        else:
            continue
        icon = el("span", "!", cls="icon", aria_hidden="true")
        lines.append(el("li", icon, el("span", words), cls="warn"))
    return lines


def headline(evaluation: Evaluation) -> Markup:
    """Tiles with the main figures, then the verdicts line by line."""
    lines = []
    for verdict in evaluation.summary["verdicts"]:
        level = Level(verdict["level"])
        icon = el("span", _ICONS[level], cls="icon", aria_hidden="true")
        words = el("span", breakable(verdict["text"]))
        lines.append(el("li", icon, words, cls="warn" if level is Level.WARNING else level))
    lines += _failures(evaluation)
    shown, others = lines[:OPEN], lines[OPEN:]
    verdicts = el("ul", shown, cls="verdicts") if shown else None
    fold = None
    if others:
        title = f"{len(others)} more verdict{'s' * (len(others) != 1)}"
        fold = el("details", el("summary", title), el("ul", others, cls="verdicts"), cls="more")
    return el("div", el("div", _tiles(evaluation), cls="tiles"), verdicts, fold)


def _against(speed: float, baseline: float | None, role: str) -> Markup | None:
    if baseline is None or role == Role.FEWER_STEPS:
        return None
    gain = speed / baseline - 1
    if abs(gain) < TIE:
        return el("small", "a tie")
    word = f"{abs(gain):.0%} {'faster' if gain > 0 else 'slower'}"
    return el("small", word, cls="win" if gain > 0 else "lose")


def _how(row: dict[str, Any]) -> Markup | None:
    """Where the figure comes from; a wide gap between the measured points must be seen."""
    words = {Where.WIDE: "wide gap", Where.MEASURED: "measured"}.get(row["where"], "interpolated")
    return el("small", el("abbr", words, title=row["note"])) if row["note"] else None


def _no_speed(row: dict[str, Any]) -> Markup:
    """A cell without a speed-up: the reason, and the computed share where noise is the reason."""
    share = row.get("computed_share")
    if row.get("where") == Where.NOISY and share is not None:
        note = el("small", el("abbr", "timing noisy", title=row["note"]))
        return el("td", el("b", f"{share:.0%} computed"), note)
    return el("td", el("small", row.get("note") or "not reached"), cls="none")


def matched_table(evaluation: Evaluation) -> Markup | None:
    """Speed-up of each series where its curve crosses a level.

    Returns:
        None if the summary holds no such comparison.
    """
    rows = _matched(evaluation)
    if not rows:
        return None
    levels = sorted({row["psnr"] for row in rows})
    styles = series_styles(evaluation)
    names: dict[str, str] = {row["series"]: row["role"] for row in rows}
    order = sorted(names, key=lambda s: COMPARED.index(names[s]))
    body = []
    for name in order:
        style = styles.get(name)
        chip = el("span", cls="chip", style=f"--c:var({style.variable})" if style else None)
        cells = [el("th", chip, breakable(name), scope="row", cls="first")]
        for level in levels:
            row = next((r for r in rows if r["series"] == name and r["psnr"] == level), {})
            speed = row.get("speedup")
            if speed is None:
                cells.append(_no_speed(row))
                continue
            baselines = _at(rows, level, Role.FEWER_STEPS)
            share = row.get("computed_share")
            cells.append(
                el(
                    "td",
                    el("b", f"{speed:.2f}×"),
                    _against(speed, baselines[0]["speedup"] if baselines else None, names[name]),
                    el("small", f"{share:.0%} computed") if share is not None else None,
                    _how(row),
                )
            )
        body.append(el("tr", cells, cls=names[name]))
    head = [el("th", "series", scope="col", cls="first")]
    head += [el("th", f"at {level:g} dB", scope="col") for level in levels]
    table = el("table", el("thead", el("tr", head)), el("tbody", body), cls="matched")
    words = (
        "What each series gains where its curve crosses a quality level; faster and slower compare "
        "with the fewer-steps baseline at that same level."
    )
    return el("div", el("p", words, cls="muted"), el("div", table, cls="scroll"))
