"""The table of all figures, for the page and as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ditaccel.eval.html.load import Config, Evaluation
from ditaccel.eval.html.markup import Markup, breakable, el
from ditaccel.eval.html.series import series_styles

# FID between two sets of real pictures is still far from 0 below this many samples.
FID_SAMPLES = 1000
TAIL_SAMPLES = 20
ROLES = {
    "dense": "reference",
    "other_seed": "unrelated",
    "fewer_steps": "baseline",
    "method": "method",
    "peer": "peer",
}


@dataclass(frozen=True)
class Column:
    """One figure.

    Attributes:
        key: its name in `not_available`.
        title: header.
        path: where it stands in a configuration's summary.
        text: number -> what the cell says.
        about: what the header's tooltip says.
        spread: keys beside `path[-1]` that give the range [low, high].
        markdown: whether the compact table has it.
        beside: path of a figure next to which the column stands, if only with dashes.
    """

    key: str
    title: str
    path: tuple[str, ...]
    text: Callable[[float], str]
    about: str
    spread: tuple[str, str] | None = None
    markdown: bool = False
    beside: tuple[str, ...] = ()


def _db(value: float) -> str:
    return "identical" if value >= 99 else f"{value:.1f}"


def _times(value: float) -> str:
    return f"{value:.2f}×"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _bytes(value: float) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def _three(value: float) -> str:
    return f"{value:.3f}"


def _fid(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


SPREAD = ("p10", "p90")
COLUMNS = (
    Column("n", "n", ("n",), lambda v: f"{v:.0f}", "samples: prompts × seeds"),
    Column(
        "speedup", "speed-up", ("speedup", "median"), _times,
        "dense seconds / seconds, per sample, wall-clock; median [p10, p90]", SPREAD, True,
    ),
    Column(
        "seconds", "seconds", ("seconds", "median"), _seconds,
        "wall-clock of one pipeline call; median [p10, p90]", SPREAD, True,
    ),
    Column(
        "computed_share", "computed", ("computed_share",), _percent,
        "block calls run / block calls of dense, weighted by parameters", None, True,
    ),
    Column(
        "efficiency", "efficiency", ("efficiency",), _percent,
        "speed-up × computed share: how much of the skipped block work came off the whole call, "
        "which has a text encoder, a scheduler and a VAE that no cache shortens",
    ),
    Column(
        "denoiser_efficiency", "denoiser efficiency", ("denoiser_efficiency",), _percent,
        "dense denoiser seconds / denoiser seconds × computed share: the same of the transformer "
        "calls alone, forecast ones included",
        beside=("efficiency",),
    ),
    Column(
        "psnr", "PSNR mean", ("psnr", "mean"), _db,
        "dB to dense with the same seed, mean of the samples (identical counts as 99)", None, True,
    ),
    Column("psnr", "p5", ("psnr", "p5"), _db, "PSNR, 5th percentile", None, True),
    Column("psnr", "min", ("psnr", "min"), _db, "PSNR of the worst sample", None, True),
    Column("psnr", "pooled", ("psnr", "pooled"), _db, "PSNR of the mean squared error of all"),
    Column(
        "identical", "identical", ("psnr", "identical"), lambda v: f"{v:.0f}",
        "samples that equal dense bit for bit",
    ),
    Column("ssim", "SSIM", ("ssim",), _three, "structural similarity to dense, 1 is equal",
           None, True),
    Column("flip", "FLIP", ("flip",), _three, "perceived difference to dense, 0 is equal",
           None, True),
    Column("lpips", "LPIPS", ("lpips",), _three, "learned perceptual distance, 0 is equal"),
    Column(
        "fid_dense", "FID dense", ("fid_dense",), _fid,
        "Fréchet distance of features to the dense outputs, 0 is equal", None, True,
    ),
    Column(
        "fid_real", "FID real", ("fid_real",), _fid,
        "Fréchet distance of features to real samples; compare with dense's row", None, True,
    ),
    Column("kid_real", "KID real", ("kid_real",), _three,
           "kernel distance of features to real samples"),
    *(
        Column(
            key, key, ("accuracy", key), _percent,
            f"share of samples whose {key} is what the prompt asks for", None, True,
        )
        for key in ("colour", "shape", "direction")
    ),
    Column("peak_memory_bytes", "memory", ("peak_memory_bytes",), _bytes, "peak memory"),
)  # fmt: skip


def _note(evaluation: Evaluation, column: Column) -> str | None:
    notes = evaluation.summary.get("not_available") or {}
    for key in (column.key, column.path[0]):
        if key in notes:
            return str(notes[key])
    return None


def _columns(evaluation: Evaluation) -> list[Column]:
    """Columns that hold a figure; the footnotes say how to get the others."""
    return [
        column
        for column in COLUMNS
        if any(
            evaluation.number(c, *path) is not None
            for path in (column.path, column.beside)
            for c in evaluation.configs
        )
    ]


def _small_n(column: Column, samples: float | None) -> str | None:
    if samples is None:
        return None
    if column.key in ("fid_dense", "fid_real", "kid_real") and samples < FID_SAMPLES:
        return f"small N: {samples:.0f} samples, so compare within this column only"
    if column.title == "p5" and samples < TAIL_SAMPLES:
        return f"small N: with {samples:.0f} samples p5 is close to min"
    return None


def _text(evaluation: Evaluation, config: Config, column: Column) -> tuple[str, str]:
    """The cell's figure and its range, both empty where there is none."""
    value = evaluation.number(config, *column.path)
    if value is None:
        return "", ""
    text, tail = column.text(value), ""
    if column.spread:
        bounds = [evaluation.number(config, *column.path[:-1], key) for key in column.spread]
        known = [column.text(bound) for bound in bounds if bound is not None]
        if len(known) == 2:
            tail = f"[{known[0]}, {known[1]}]".replace("×", "")
    return text, tail


def _header(evaluation: Evaluation, column: Column) -> Markup:
    """The header's button; it carries the small-N flag if the whole column would."""
    flag = "ⁿ" if _all_small(evaluation, column) else ""
    about = column.about
    if column.key == "peak_memory_bytes":
        about = str(evaluation.run.get("memory") or about)
    button = el("button", column.title + flag, type="button", title=about)
    return el("th", button, scope="col", cls="num")


def _all_small(evaluation: Evaluation, column: Column) -> bool:
    counts = [evaluation.number(config, "n") for config in evaluation.configs]
    return all(_small_n(column, count) for count in counts)


def _cell(evaluation: Evaluation, config: Config, column: Column) -> Markup:
    value = evaluation.number(config, *column.path)
    if value is None:
        note = _note(evaluation, column)
        content = el("abbr", "n/a", title=note) if note else "–"
        return el("td", content, cls="num none", data_v="")
    text, tail = _text(evaluation, config, column)
    flag = _small_n(column, evaluation.number(config, "n"))
    if _all_small(evaluation, column):
        flag = None
    marks = el("abbr", "ⁿ", title=flag, cls="flag") if flag else None
    small = el("small", " ", tail) if tail else None
    return el("td", text, marks, small, cls="num", data_v=repr(value))


def _beaten(evaluation: Evaluation, config: Config) -> Markup | None:
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
    columns = _columns(evaluation)
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
            el("small", " ", ROLES.get(config.role, config.role)),
            _beaten(evaluation, config), warning,
            scope="row", cls="first", title=config.spec, data_v=config.label,
        )  # fmt: skip
        cells = [_cell(evaluation, config, column) for column in columns]
        body.append(el("tr", name, cells, cls=config.role))
    table = el(
        "table", el("thead", el("tr", head)), el("tbody", body), cls="sortable", id="figures"
    )
    return el("div", el("div", table, cls="scroll", tabindex=0), _footnotes(evaluation, columns))


def _footnotes(evaluation: Evaluation, columns: list[Column]) -> Markup:
    lines: list[Markup] = []
    smallest = min((evaluation.number(c, "n") or 0) for c in evaluation.configs)
    if any(_small_n(column, smallest) for column in columns):
        lines.append(
            el(
                "li",
                f"ⁿ small N ({smallest:.0f} samples): FID depends on the number of samples below "
                f"{FID_SAMPLES}, so compare it within its column only; p5 is close to the worst "
                f"sample below {TAIL_SAMPLES}.",
            )
        )
    missing: dict[str, list[str]] = {}
    for key, text in (evaluation.summary.get("not_available") or {}).items():
        missing.setdefault(str(text), []).append(key)
    for text, keys in missing.items():
        lines.append(el("li", el("b", f"{', '.join(keys)}: n/a. "), text))
    return el("ul", lines, cls="notes") if lines else el("div")


def markdown_rows(evaluation: Evaluation) -> str:
    """The compact table as GitHub Markdown, one line a configuration, with notes below."""
    columns = [c for c in _columns(evaluation) if c.markdown]

    def safe(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    lines = [
        "| configuration | " + " | ".join(c.title for c in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for config in evaluation.configs:
        cells = [" ".join(filter(None, _text(evaluation, config, c))) or "–" for c in columns]
        failed = evaluation.failed(config.id)
        name = safe(config.label) + (f" ({len(failed)} failed)" if failed else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    smallest = min((evaluation.number(c, "n") or 0) for c in evaluation.configs)
    notes = [f"{smallest:.0f} samples a configuration"]
    if any(c.key.startswith("fid") for c in columns) and smallest < FID_SAMPLES:
        notes.append("FID at this N: compare within the column only")
    device = evaluation.run.get("device") or {}
    if device.get("name"):
        notes.append(f"device: {safe(str(device['name']))}")
    return "\n".join([*lines, "", "; ".join(notes) + ".", ""])
