"""The page of a search by `ditaccel tune`: the front, what was tried, and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ditaccel.eval.report.markup import Markup, el
from ditaccel.eval.report.media import encode_picture, frame_strip
from ditaccel.eval.report.shell import document, write_text

from ditaccel.errors import UsageError
from ditaccel.io.checked import anything, read_record
from ditaccel.io.progress import duration
from ditaccel.tuning.space.store import read_arrays
from ditaccel.tuning.space.tried import PAGE, picture_name

# Where a candidate comes from -> how it is called, colour of the page's palette.
_KINDS = {
    "joint": ("cache and sparse attention", 1),
    "cache": ("cache alone", 0),
    "attention": ("sparse attention alone", 2),
    "steps": ("fewer steps", 4),
    "given": ("given", 3),
}
# Candidates whose pictures are shown besides the best one.
_PICTURES = 5
_AGAIN = "run `ditaccel tune` on this folder again to have it written"


def read_tuning(folder: Path) -> dict[str, Any]:
    """What a search has tried.

    Raises:
        UsageError: the folder holds no search, or its file is damaged.
    """
    found = read_record(folder / PAGE, anything, _AGAIN)
    if not isinstance(found, dict) or found.get("tuning") != 1 or not found.get("targets"):
        raise UsageError(f"{folder / PAGE} is not what `ditaccel tune` writes; {_AGAIN}")
    return found


def write_tuning_page(folder: Path) -> tuple[Path, list[str]]:
    """Write the page of a search.

    Returns:
        The page, and its results in lines.

    Raises:
        UsageError: the folder holds no search, or the page cannot be written.
    """
    data = read_tuning(folder)
    try:
        body = [_section(folder, asked, part) for asked, part in data["targets"].items()]
        about = (
            f"{data['steps']} steps with {data['scheduler']}, {data['prompts']} prompt-seed pairs. "
            "Seconds are of a whole generation: of the process on a CPU, so that other work does "
            "not count. Candidates that were given up early were run on fewer prompts."
        )
        title = f"Tuning {data['model']}"
        words = [part["words"] for part in data["targets"].values()]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"{folder / PAGE} is damaged ({error!r}); {_AGAIN}") from None
    head = el(
        "header",
        el("p", "ditaccel tune", cls="kicker"),
        el("h1", title),
        el("p", about, cls="muted"),
    )
    return write_text(folder / "report.html", document(title, head, body)), words


def _section(folder: Path, asked: str, part: Mapping[str, Any]) -> Markup:
    rows = part["rows"]
    (best,) = (row for row in rows if row["config"] == part["best"])
    return el(
        "section",
        el("h2", f"Target: {asked}"),
        _tiles(part, best),
        None if part["reached"] else _missed(part),
        el("div", _key(rows), cls="pareto"),
        el("div", _plot(part, 1080, 420, 13), cls="plot wide"),
        el("div", _plot(part, 400, 380, 12), cls="plot narrow"),
        _pictures(folder, part, best),
        el("h3", "What was tried"),
        _table(part),
    )


def _missed(part: Mapping[str, Any]) -> Markup:
    return el(
        "ul",
        el("li", el("span", "!", cls="icon"), el("span", part["words"]), cls="warn"),
        cls="verdicts",
    )


def _level(part: Mapping[str, Any], value: float) -> str:
    unit = part["unit"]
    return f"{value:.1f} {unit}" if unit else f"{value:.4g}"


def _tiles(part: Mapping[str, Any], best: Mapping[str, Any]) -> Markup:
    good = "main" if part["reached"] else "main bad"
    tiles = (
        (f"{best['speedup']:.2f}×", f"as fast as dense: {best['name']}", good),
        (_level(part, best["level"]), f"{part['metric']} to dense, {part['statistic']}", good),
        (_level(part, best["worst"]), "worst sample", ""),
        (duration(best["seconds"]), f"per generation; dense takes {duration(part['dense'])}", ""),
    )
    return el(
        "div",
        [
            el("div", el("strong", value), el("span", words), cls=f"tile {kind}".strip())
            for value, words, kind in tiles
        ],
        cls="tiles",
    )


def _key(rows: Sequence[Mapping[str, Any]]) -> Markup:
    kinds = [kind for kind in _KINDS if any(row["kind"] == kind for row in rows)]
    items = [
        el(
            "li",
            el("svg", el("circle", cx=7, cy=9, r=5, cls="mark", style=_colour(kind)), width=16,
               height=18, aria_hidden="true"),
            f" {_KINDS[kind][0]}",
        )
        for kind in kinds
    ]  # fmt: skip
    return el("ul", items, cls="key")


def _colour(kind: str) -> str:
    return f"--c:var(--s{_KINDS.get(kind, _KINDS['given'])[1]})"


def _ticks(low: float, high: float, count: int) -> list[float]:
    rough = max(high - low, 1e-9) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _front(rows: Sequence[Mapping[str, Any]], higher: bool) -> list[Mapping[str, Any]]:
    """Those that no other one beats in both speed and level, the fastest first."""
    found: list[Mapping[str, Any]] = []
    for row in sorted(rows, key=lambda row: row["seconds"]):
        if not found or (row["level"] > found[-1]["level"]) == higher:
            found.append(row)
    return found


def _plot(part: Mapping[str, Any], width: int, height: int, font: float) -> Markup:
    """Level against speed-up, with the front and the target."""
    rows, size = part["rows"], f"font-size:{font}px"
    left, right, top, bottom = 4.2 * font, width - 12, 2.6 * font, height - 4 * font
    xs, ys = [row["speedup"] for row in rows] + [1.0], [row["level"] for row in rows]
    ys += [part["level"]] if part["level"] is not None else []
    ranges = [(min(v), max(v)) for v in (xs, ys)]
    (x0, x1), (y0, y1) = ((a - 0.06 * (b - a or 1), b + 0.06 * (b - a or 1)) for a, b in ranges)

    def x(value: float) -> float:
        return round(left + (value - x0) / (x1 - x0) * (right - left), 1)

    def y(value: float) -> float:
        return round(bottom - (value - y0) / (y1 - y0) * (bottom - top), 1)

    parts: list[Markup] = []
    for value in _ticks(y0, y1, 6):
        parts.append(el("line", x1=left, x2=right, y1=y(value), y2=y(value), cls="grid"))
        parts.append(_text(f"{value:g}", left - 8, y(value) + font / 3, "tick", "end", size))
    for value in _ticks(x0, x1, 4 if width < 600 else 8):
        parts.append(_text(f"{value:g}×", x(value), bottom + 9 + font, "tick", "middle", size))
    parts.append(el("line", x1=left, x2=right, y1=bottom, y2=bottom, cls="axis"))
    up = "↑" if part["higher"] else "↓"
    unit = f", {part['unit']}" if part["unit"] else ""
    parts.append(_text(f"{part['metric']}{unit} {up} closer", 4, font + 2, "axis-label", "", size))
    middle = (left + right) / 2
    parts.append(_text("speed-up", middle, height - 6, "axis-label", "middle", size))
    if part["level"] is not None:
        row = y(part["level"])
        parts.append(el("line", x1=left, x2=right, y1=row, y2=row, cls="reference"))
        parts.append(_text("target", right, row - 5, "note", "end", size))
    if part["seconds"] is not None:
        column = x(part["dense"] / part["seconds"])
        parts.append(el("line", x1=column, x2=column, y1=top, y2=bottom, cls="reference"))
    line = " ".join(f"{x(r['speedup'])},{y(r['level'])}" for r in _front(rows, part["higher"]))
    parts.append(el("polyline", points=line, cls="series", style="--c:var(--line)"))
    for row in rows:
        tip = (
            f"{row['name']}\n{row['speedup']:.2f}×, {_level(part, row['level'])} on "
            f"{row['prompts']} prompt(s)"
        )
        at = {"cx": x(row["speedup"]), "cy": y(row["level"])}
        won = row["config"] == part["best"]
        dot = el("circle", r=8 if won else 5, cls="mark", style=_colour(row["kind"]), **at)
        label = tip.replace("\n", ", ")
        hit = el("circle", r=12, cls="hit", **at)
        parts.append(
            el("g", hit, dot, cls="point", tabindex=0, role="img", aria_label=label, data_tip=tip)
        )
    words = f"{len(rows)} candidates: speed-up against {part['metric']}; the table has them all."
    return el("svg", parts, viewBox=f"0 0 {width} {height}", role="group", aria_label=words)


def _text(words: str, x: float, y: float, kind: str, anchor: str, style: str) -> Markup:
    return el("text", words, x=x, y=y, cls=kind, text_anchor=anchor or None, style=style)


def _pictures(folder: Path, part: Mapping[str, Any], best: Mapping[str, Any]) -> Markup | None:
    """The first prompt: dense, the best, and others of the front."""
    front = _front(part["rows"], part["higher"])
    stride = max(1, math.ceil(len(front) / _PICTURES))
    shown = [best, *(row for row in front[::stride] if row["config"] != best["config"])]
    cards = [_card(folder, "dense", "dense", f"1×, {duration(part['dense'])}", "card dense")]
    for row in shown:
        mark = " (taken)" if row is best else ""
        figures = f"{row['speedup']:.2f}×, {_level(part, row['level'])}"
        cards.append(_card(folder, row["config"], row["name"] + mark, figures, "card"))
    cards = [card for card in cards if card]
    return el("div", cards, cls="cards") if cards else None


def _card(folder: Path, name: str, title: str, figures: str, kind: str) -> Markup | None:
    path = folder / f"{picture_name(name)}.npz"
    if not path.exists():
        return None
    frames = read_arrays(path).get("frames")
    if frames is None:
        raise UsageError(f"{path} holds no picture; delete it")
    picture = frame_strip(frames) if len(frames) > 1 else frames[0]
    uri = encode_picture(np.ascontiguousarray(picture[..., :3]))
    caption = el("figcaption", el("b", title), el("span", figures))
    return el("figure", caption, el("img", src=uri, alt=title, cls="frame"), cls=kind)


def _table(part: Mapping[str, Any]) -> Markup:
    names = ("candidate", "kind", "speed-up", "seconds", part["metric"], "worst", "prompts", "")
    numbers = range(2, 7)
    head = el(
        "tr",
        [el("th", n, cls="num" if i in numbers else None) for i, n in enumerate(names)],
    )
    body = []
    for row in part["rows"]:
        won = "taken" if row["config"] == part["best"] else ""
        cells = (
            row["name"],
            _KINDS.get(row["kind"], _KINDS["given"])[0],
            f"{row['speedup']:.2f}×",
            f"{row['seconds']:.3g}",
            _level(part, row["level"]),
            _level(part, row["worst"]),
            str(row["prompts"]),
            won or ("reaches it" if row["reached"] else ""),
        )
        body.append(
            el(
                "tr",
                [el("td", c, cls="num" if i in numbers else None) for i, c in enumerate(cells)],
            )
        )
    return el("div", el("table", el("thead", head), el("tbody", body)), cls="scroll")
