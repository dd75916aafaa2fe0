"""The gallery of a batch job: failures first, then a card for each output."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ditaccel.eval.report.markup import Markup, breakable, el
from ditaccel.eval.report.shell import document, write_text

from ditaccel.batch.folder import DENSE_THUMBNAIL, JobFolder
from ditaccel.batch.manifest import Item
from ditaccel.batch.state import PARTS, describe, summarise
from ditaccel.errors import UsageError
from ditaccel.io.progress import duration
from ditaccel.reports.audited import Outcome

PAGE = "gallery.html"
# Characters of data URIs a page may hold, so that a browser opens it at once.
BUDGET = 12_000_000
# Audited items that are shown.
_WORST = 12
_SHOWN_CALL = ("width", "height", "num_frames", "num_inference_steps", "guidance_scale")


def _tile(value: str, words: str, kind: str = "") -> Markup:
    return el("div", el("strong", value), el("span", words), cls=f"tile {kind}".strip())


def _tiles(summary: dict[str, Any]) -> Markup:
    tiles = [
        _tile(f"{summary['done']} / {summary['items']}", "items done", "main"),
        _tile(str(summary["failed"]), "failed", "main bad" if summary["failed"] else ""),
    ]
    if summary["left"]:
        words = "left"
        if summary["working"] and summary["seconds_left"] is not None:
            words = f"left, about {duration(summary['seconds_left'])}"
        tiles.append(_tile(str(summary["left"]), words))
    if summary.get("not_chosen"):
        tiles.append(_tile(str(summary["not_chosen"]), "rows not asked for (limit, filter)"))
    if summary["seconds_per_item"] is not None:
        tiles.append(_tile(duration(summary["seconds_per_item"]), "of work per item (median)"))
    if summary["hit_rate"] is not None:
        tiles.append(_tile(f"{100 * summary['hit_rate']:.0f} %", "of transformer calls forecast"))
    return el("div", tiles, cls="tiles")


def _times(summary: dict[str, Any]) -> Markup | None:
    seconds = {part: summary["seconds"][part] for part in PARTS}
    total = sum(seconds.values())
    if not total:
        return None
    rows = [
        el(
            "tr",
            el("th", part, scope="row"),
            el("td", duration(value), cls="num"),
            el("td", f"{100 * value / total:.1f} %", cls="num"),
            el("td", el("div", cls="bar", style=f"width:{100 * value / total:.1f}%"), cls="wide"),
        )
        for part, value in seconds.items()
    ]
    note = "Of all items together; decoding and encoding run alongside the next item's denoising."
    return el("div", el("table", el("tbody", rows), cls="times"), el("p", note, cls="muted"))


def _failures(lines: Sequence[dict[str, Any]]) -> Markup | None:
    failed = [line for line in lines if line.get("status") == "failed"]
    if not failed:
        return None
    rows = [
        el(
            "tr",
            el("td", line.get("row"), cls="num"),
            el("td", str(line.get("prompt") or ""), cls="text"),
            el("td", str(line.get("kind") or "")),
            el(
                "td",
                el("span", breakable(str(line.get("reason") or "")), cls="bad"),
                el("details", el("summary", "trace"), el("pre", str(line["trace"])))
                if line.get("trace")
                else None,
                cls="text",
            ),
        )
        for line in failed
    ]
    head = el("tr", [el("th", name) for name in ("row", "prompt", "kind", "reason")])
    hint = "After mending rows or making memory free, try them again (option `retry-failed`)."
    table = el("table", el("thead", head), el("tbody", rows))
    return el("div", el("div", table, cls="scroll"), el("p", hint, cls="muted"))


def _audits(folder: JobFolder, items: Sequence[Item], summary: dict[str, Any]) -> Markup | None:
    """What the audit says of each config, and the worst of its items beside dense."""
    audits = summary["audits"]
    if not audits:
        return None
    tiles = []
    for found in audits:
        count, target = found["n"], found["target"]
        facts = [f"to dense: mean of {count} audited item{'s' * (count != 1)}"]
        if found["low"] is not None:
            low, high = found["low"], found["high"]
            facts.append(f"of all items {low:.1f} to {high:.1f} dB (95 % interval)")
        facts.append(f"worst {found['worst']:.1f} dB")
        if target is not None:
            facts.append(Outcome(found["outcome"]).words(target))
        facts.append(found["config"])
        kind = "main bad" if found["missed"] else ""
        tiles.append(_tile(f"{found['mean']:.1f} dB", " · ".join(facts), kind))
    audited = []
    for item in items:
        record = folder.record(item) or {}
        if "psnr" in (record.get("audit") or {}):
            audited.append((float(record["audit"]["psnr"]), item, record))
    audited.sort(key=lambda each: (each[0], each[1].row))
    cards = [
        el(
            "figure",
            _side_by_side(folder, item),
            el(
                "figcaption",
                el("b", item.prompt or item.name),
                el("span", f"{psnr:.1f} dB to dense · seed {item.seed} · row {item.row}"),
                el("span", f"made with {record['safer']}") if record.get("safer") else None,
            ),
            cls="item",
        )
        for psnr, item, record in audited[:_WORST]
    ]
    shown = f"The worst {len(cards)} of" if len(cards) < len(audited) else "All"
    note = f"{shown} {len(audited)} audited items, worst first; left as made, right dense."
    return el(
        "div",
        el("div", tiles, cls="tiles"),
        el("p", note, cls="muted"),
        el("div", cards, cls="wall"),
    )


def _side_by_side(folder: JobFolder, item: Item) -> Markup:
    name = item.prompt or item.name
    found = {
        "accelerated": folder.thumbnail(item),
        "dense": folder.thumbnail(item, DENSE_THUMBNAIL),
    }
    pictures = [
        el("img", src=uri, alt=f"{words}: {name}", loading="lazy", style="width:100%")
        for words, uri in found.items()
        if uri is not None
    ]
    return el("div", pictures, style="display:grid;grid-template-columns:1fr 1fr;gap:4px")


def _steps(record: dict[str, Any]) -> Markup | None:
    maps = (record.get("steps") or {}).get("steps") or {}
    first = next(iter(maps.values()), "")
    if not first:
        return None
    cells = [
        el("i", cls="on" if mark == "#" else "off" if mark == "." else "none") for mark in first
    ]
    tip = "\n".join(f"{name}: {text}" for name, text in maps.items())
    return el(
        "div", cells, cls="strip-steps", data_tip=f"steps computed (#) and forecast (.)\n{tip}"
    )


def clip(link: str, alt: str) -> Markup:
    """A video that plays in place, from the file beside the page, once it is unfolded.

    Nothing is read before that: a job may hold thousands of clips.
    """
    video = el(
        "video", controls=True, preload="none", loop=True, muted=True, playsinline=True, src=link,
        aria_label=alt,
    )  # fmt: skip
    return el("details", el("summary", "play"), video, cls="clip")


def _card(item: Item, record: dict[str, Any], thumbnail: str | None) -> Markup:
    files = [
        el("a", file["kind"], href="outputs/" + quote(str(file["path"])))
        for file in record.get("files") or []
    ]
    main = (record.get("files") or [{}])[0].get("path", "")
    picture: Markup = el("span", "no preview", cls="muted")
    if thumbnail is not None:
        picture = el("img", src=thumbnail, alt=item.prompt or item.name, loading="lazy")
    link = "outputs/" + quote(str(main))
    moving = str(main).endswith((".mp4", ".webm"))
    steps = record.get("steps") or {}
    facts = [f"seed {item.seed}", duration(sum(record["seconds"].get(p, 0.0) for p in PARTS[:3]))]
    if "psnr" in (record.get("audit") or {}):
        facts.append(f"{record['audit']['psnr']:.1f} dB to dense")
    if steps.get("calls"):
        facts.append(f"{100 * steps.get('forecast', 0) / steps['calls']:.0f} % forecast")
    call = " · ".join(
        f"{k.removeprefix('num_')} {item.call[k]}" for k in _SHOWN_CALL if k in item.call
    )
    return el(
        "figure",
        el("a", picture, href=link, cls="shot"),
        clip(link, item.prompt or item.name) if moving else None,
        el(
            "figcaption",
            el("b", item.prompt or item.name),
            el("span", " · ".join(facts)),
            _steps(record),
            el("span", [el("span", file, " ") for file in files], cls="files"),
        ),
        cls="item",
        title=call,
        data_text=f"{item.prompt} {item.name} seed {item.seed} row {item.row} "
        f"{json.dumps(item.meta, ensure_ascii=False)}".casefold(),
    )


def _gallery(folder: JobFolder, items: Sequence[Item]) -> Markup:
    cards, spent, left_out = [], 0, 0
    for item in items:
        record = folder.record(item)
        if record is None:
            continue
        thumbnail = folder.thumbnail(item)
        spent += len(thumbnail or "") + 1500
        if spent > BUDGET:
            left_out += 1
            continue
        cards.append(_card(item, record, thumbnail))
    note = None
    if left_out:
        words = f"{left_out} more outputs are not shown, to keep this page small."
        note = el("p", words, cls="muted")
    search = el(
        "label",
        el("span", "Filter ", cls="muted"),
        el("input", type="search", cls="filter", placeholder="prompt, name, seed 3, row 12, …"),
        el("output", f"{len(cards)} shown", cls="muted"),
        cls="search",
    )
    legend = el(
        "p",
        "Bars below an output, one mark per step:",
        el("span", el("i", cls="on"), cls="strip-steps"), " computed",
        el("span", el("i", cls="off"), cls="strip-steps"), " forecast.",
        cls="legend",
    )  # fmt: skip
    return el("div", search, legend, el("div", cards, cls="wall"), note)


def _facts(job: dict[str, Any]) -> Markup:
    settings = job.get("settings") or {}
    config = (job.get("config") or {}).get("cache") or (job.get("config") or {}).get("attention")
    facts: dict[str, Any] = {
        "command": job.get("command"),
        "model": job.get("model"),
        "pipeline": job.get("pipeline"),
        "config": json.dumps(config) if config else "none (dense)",
        "files": ", ".join(settings.get("save") or []),
        "encoding": f"{settings.get('codec')}, crf {settings.get('crf')}, yuv420p, BT.709",
        "dtype": settings.get("dtype"),
        "versions": ", ".join(f"{k} {v}" for k, v in (job.get("versions") or {}).items()),
        "commit": job.get("commit"),
    }
    if "mp4" not in (settings.get("save") or []):
        del facts["encoding"]
    rows = [el("div", el("dt", key), el("dd", str(value))) for key, value in facts.items() if value]
    return el("dl", rows)


def write_gallery(root: str | Path) -> tuple[Path, list[str], dict[str, Any]]:
    """Write `gallery.html` into a job's folder, which may be at work.

    Args:
        root: the folder that `ditaccel generate` wrote.

    Returns:
        The page, the job's state in plain lines, and as plain data.

    Raises:
        UsageError: there is no job, or the page cannot be written.
    """
    folder = JobFolder(root)
    if not folder.exists:
        raise UsageError(
            f"{folder.root} holds no job: name a folder that `ditaccel generate` wrote"
        )
    items = folder.items()
    chosen = {item.id for item in folder.chosen(items)}
    lines = folder.merged(items)
    # Beside what the newest command chose: what earlier ones made, or tried to.
    settled = {line["id"] for line in lines}
    meant = [item for item in items if item.id in chosen or item.id in settled]
    summary = summarise(folder, meant, lines)
    summary["not_chosen"] = len(items) - len(meant)
    job = folder.job()
    name = Path(str(job.get("model", "job"))).name
    parts = {
        "state": ("State", el("div", _tiles(summary))),
        "failures": ("Failures", _failures(lines)),
        "audit": ("Audit", _audits(folder, items, summary)),
        "outputs": ("Outputs", _gallery(folder, items)),
        "times": ("Where the time goes", _times(summary)),
        "made": ("How this was made", _facts(job)),
    }
    shown = {key: pair for key, pair in parts.items() if pair[1] is not None}
    stamp = time.strftime("%Y-%m-%d %H:%M")
    working = f"{summary['working']} at work" if summary["working"] else "nobody at work"
    header = el(
        "header",
        el("p", "ditaccel batch job", cls="kicker"),
        el("h1", name),
        el("p", f"As of {stamp}, {working}", cls="muted"),
        el("nav", [el("a", title, href=f"#{key}") for key, (title, _) in shown.items()]),
    )
    main = [el("section", el("h2", title), body, id=key) for key, (title, body) in shown.items()]
    page = write_text(
        folder.root / PAGE, document(f"{name}: ditaccel job", header, main, own_media=True)
    )
    return page, describe(summary), summary
