"""The answer in plain words, and the comparison at equal quality."""

from __future__ import annotations

from typing import Any

from ditaccel.eval.html.load import Evaluation
from ditaccel.eval.html.markup import Markup, breakable, el
from ditaccel.eval.html.series import series_styles

# The level whose figures make the headline; 30 dB is where differences stop to be plain to see.
HEADLINE_DB = 30
# Speed-ups closer than this are noise on a busy machine.
TIE = 0.03
WARNINGS = (
    "fewer steps would serve",
    "no better than fewer",
    "no faster than dense",
    "as far from dense",
    "worse quality",
    "accuracy falls",
    "warning",
)


def _matched(evaluation: Evaluation) -> list[dict[str, Any]]:
    return [row for row in evaluation.summary.get("matched") or [] if isinstance(row, dict)]


def _at(rows: list[dict[str, Any]], level: float, role: str) -> list[dict[str, Any]]:
    return [
        row
        for row in rows
        if row["psnr"] == level and row["role"] == role and row.get("speedup") is not None
    ]


def _tile(value: str, words: str, kind: str = "") -> Markup:
    return el("div", el("strong", value), el("span", breakable(words)), cls=f"tile {kind}".strip())


def _level_tiles(rows: list[dict[str, Any]], level: float, levels: list[float]) -> list[Markup]:
    """The fastest method at a level, beside fewer steps and the best peer."""
    tiles = []
    fewer = [r for r in rows if r["psnr"] == level and r["role"] == "fewer_steps"]
    baseline = next((r["speedup"] for r in fewer if r.get("speedup") is not None), None)
    methods = sorted(_at(rows, level, "method"), key=lambda r: -r["speedup"])
    if methods:
        best = methods[0]
        words = f"fastest method at {level:g} dB PSNR: {best['series']}"
        slower = baseline is not None and best["speedup"] < baseline
        tiles.append(_tile(f"{best['speedup']:.2f}×", words, "main bad" if slower else "main"))
    else:
        tiles.append(_tile("–", _why_none(rows, levels), "main"))
    if baseline is not None:
        tiles.append(_tile(f"{baseline:.2f}×", f"just taking fewer steps, at {level:g} dB"))
    elif fewer:
        note = str(fewer[0].get("note") or "not reached")
        tiles.append(_tile("–", f"just taking fewer steps, at {level:g} dB: {note}"))
    peers = sorted(_at(rows, level, "peer"), key=lambda r: -r["speedup"])
    if peers:
        words = f"best other tool at {level:g} dB: {peers[0]['series']}"
        tiles.append(_tile(f"{peers[0]['speedup']:.2f}×", words))
    return tiles


def _why_none(rows: list[dict[str, Any]], levels: list[float]) -> str:
    """Why no method has a speed at any level; one that is better than asked for is named."""
    above = [r for r in rows if r["role"] == "method" and "lie above" in str(r.get("note"))]
    if above:
        best = max(above, key=lambda r: r["psnr"])
        return f"at {best['psnr']:g} dB PSNR, {best['series']}: {best['note']}"
    return f"no method's curve crosses {' or '.join(f'{v:g}' for v in sorted(levels))} dB PSNR"


def _tiles(evaluation: Evaluation) -> list[Markup]:
    rows = _matched(evaluation)
    tiles = []
    levels = sorted({row["psnr"] for row in rows}, key=lambda v: abs(v - HEADLINE_DB))
    # A level that some method crosses, the nearest to the headline's.
    level = next((v for v in levels if _at(rows, v, "method")), levels[0] if levels else None)
    if level is not None:
        tiles += _level_tiles(rows, level, levels)
    samples = {row["sample"] for row in evaluation.results}
    configs = len(evaluation.configs)
    count = f"sample{'s' * (len(samples) != 1)} in each of {configs} configurations"
    tiles.append(_tile(str(len(samples)), count))
    return tiles


def _failures(evaluation: Evaluation) -> list[Markup]:
    """One warning a configuration that failed on a sample, also where it failed on all."""
    lines = []
    for listed in evaluation.run["configs"]:
        failed = evaluation.failed(listed["id"])
        if failed:
            total = len(set(failed) | set(evaluation.rows.get(listed["id"], {})))
            reason = next(iter(failed.values()))
            words = f"{listed['label']}: {len(failed)} of {total} samples failed ({reason})."
            icon = el("span", "!", cls="icon", aria_hidden="true")
            lines.append(el("li", icon, el("span", words), cls="warn"))
    return lines


def headline(evaluation: Evaluation) -> Markup:
    """Tiles with the main figures, then the verdicts line by line."""
    lines = []
    for text in evaluation.summary.get("verdicts") or []:
        warn = any(mark in str(text).lower() for mark in WARNINGS)
        icon = el("span", "!" if warn else "→", cls="icon", aria_hidden="true")
        lines.append(el("li", icon, el("span", breakable(str(text))), cls="warn" if warn else None))
    lines += _failures(evaluation)
    verdicts = el("ul", lines, cls="verdicts") if lines else None
    return el("div", el("div", _tiles(evaluation), cls="tiles"), verdicts)


def _against(speed: float, baseline: float | None, role: str) -> Markup | None:
    if baseline is None or role == "fewer_steps":
        return None
    gain = speed / baseline - 1
    if abs(gain) < TIE:
        return el("small", "a tie")
    word = f"{abs(gain):.0%} {'faster' if gain > 0 else 'slower'}"
    return el("small", word, cls="win" if gain > 0 else "lose")


def _how(note: str) -> Markup | None:
    """Where the figure comes from; a wide gap between the measured points must be seen."""
    if not note:
        return None
    return el("small", el("abbr", "wide gap" if "apart" in note else "interpolated", title=note))


def matched_table(evaluation: Evaluation) -> Markup | None:
    """Speed-up of each series where its curve crosses 25, 30 and 35 dB.

    Returns:
        None if the summary holds no such comparison.
    """
    rows = _matched(evaluation)
    if not rows:
        return None
    levels = sorted({row["psnr"] for row in rows})
    styles = series_styles(evaluation)
    names: dict[str, str] = {row["series"]: row["role"] for row in rows}
    order = sorted(names, key=lambda s: ("fewer_steps", "method", "peer").index(names[s]))
    body = []
    for name in order:
        style = styles.get(name)
        chip = el("span", cls="chip", style=f"--c:var({style.variable})" if style else None)
        cells = [el("th", chip, breakable(name), scope="row", cls="first")]
        for level in levels:
            row = next((r for r in rows if r["series"] == name and r["psnr"] == level), {})
            speed = row.get("speedup")
            if speed is None:
                cells.append(el("td", el("small", row.get("note") or "not reached"), cls="none"))
                continue
            baselines = _at(rows, level, "fewer_steps")
            share = row.get("computed_share")
            cells.append(
                el(
                    "td",
                    el("b", f"{speed:.2f}×"),
                    _against(speed, baselines[0]["speedup"] if baselines else None, names[name]),
                    el("small", f"{share:.0%} computed") if share is not None else None,
                    _how(str(row.get("note") or "")),
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
