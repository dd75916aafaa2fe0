"""The figures of a row: which there are, what their cells say, and how to get the missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ditaccel.eval.measure.pairs import State
from ditaccel.eval.report.load import Config, Evaluation

# FID between two sets of real pictures is still far from 0 below this many samples.
FID_SAMPLES = 1000
TAIL_SAMPLES = 20


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
        error: path of the figure's standard error.
    """

    key: str
    title: str
    path: tuple[str, ...]
    text: Callable[[float], str]
    about: str
    spread: tuple[str, str] | None = None
    markdown: bool = False
    beside: tuple[str, ...] = ()
    error: tuple[str, ...] = ()


def _db(value: float) -> str:
    return "identical" if value >= 99 else f"{value:.1f}"


def _times(value: float) -> str:
    return f"{value:.2f}×"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _bytes(value: float) -> str:
    if value >= 2**30:
        return f"{value / 2**30:.2f} GiB"
    return f"{value / 2**20:.0f} MiB" if value >= 10 * 2**20 else f"{value / 2**10:.0f} KiB"


def _three(value: float) -> str:
    return f"{value:.3f}"


def _fid(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


SPREAD = ("p10", "p90")
QUARTILES = ("p25", "p75")
COLUMNS = (
    Column("n", "n", ("n",), lambda v: f"{v:.0f}", "samples: prompts × seeds"),
    Column(
        "speedup", "speed-up", ("speedup", "median"), _times,
        "seconds of a dense run beside it / its seconds; median [p25, p75] of the samples. Where "
        "other work ran on the machine, process time decides", QUARTILES, True,
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
    Column("psnr", "median", ("psnr", "median"), _db, "PSNR, median of the samples", None, True),
    Column(
        "kept", "kept", ("psnr", "kept"), _percent,
        "share of samples that stay the same picture: PSNR of 25 dB or more", None, True,
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
        "Fréchet distance of features to the dense outputs, 0 is equal; ± one standard error",
        None, True, error=("fid_dense_error",),
    ),
    Column(
        "fid_real", "FID real", ("fid_real",), _fid,
        "Fréchet distance of features to real samples; compare with dense's row; ± one standard "
        "error", None, True, error=("fid_real_error",),
    ),
    Column("kid_real", "KID real", ("kid_real",), _three,
           "kernel distance of features to real samples; ± one standard error",
           error=("kid_real_error",)),
    *(
        Column(
            key, key, ("accuracy", key), _percent,
            f"share of samples whose {key} is what the prompt asks for", None, True,
        )
        for key in ("colour", "shape", "direction")
    ),
    Column("peak_memory_bytes", "memory", ("peak_memory_bytes",), _bytes, "peak memory"),
)  # fmt: skip


def note_of(evaluation: Evaluation, column: Column) -> str | None:
    """How to get a figure that is not there."""
    notes = evaluation.summary.get("not_available") or {}
    for key in (column.key, column.path[0]):
        if key in notes:
            return str(notes[key])
    return None


def columns_of(evaluation: Evaluation) -> list[Column]:
    """Columns that hold a figure; the footnotes say how to get the others."""
    counts = {evaluation.number(c, "n") for c in evaluation.configs}
    return [
        column
        for column in COLUMNS
        if any(
            evaluation.number(c, *path) is not None
            for path in (column.path, column.beside)
            for c in evaluation.configs
        )
        # The same number in every row is said once, above the table.
        and (column.key != "n" or len(counts) > 1)
    ]


def small_n(column: Column, samples: float | None) -> str | None:
    """What so few samples do to a figure, None where there are enough."""
    if samples is None:
        return None
    if column.key in ("fid_dense", "fid_real", "kid_real") and samples < FID_SAMPLES:
        return f"small N: {samples:.0f} samples, so compare within this column only"
    if column.title == "p5" and samples < TAIL_SAMPLES:
        return f"small N: with {samples:.0f} samples p5 is close to min"
    return None


def speedup_words(evaluation: Evaluation, config: Config) -> str:
    """What stands in place of a speed-up that is none, or in front of one that is noisy."""
    return {
        State.OK: "",
        State.NOISY: "noisy",
        State.IMPOSSIBLE: "impossible",
        State.UNSKIPPED: "nothing skipped",
        State.UNTIMED: "not timed",
    }[evaluation.state(config)]


def speedup_reason(evaluation: Evaluation, config: Config) -> str:
    """Why a speed-up is noisy or refused."""
    own = str(evaluation.stats(config)["timing"]["reason"])
    if own or evaluation.state(config) is not State.NOISY:
        return own
    return str((evaluation.summary.get("timing") or {}).get("text", ""))


def cell_text(evaluation: Evaluation, config: Config, column: Column) -> tuple[str, str]:
    """The cell's figure and its range, both empty where there is none."""
    value = evaluation.number(config, *column.path)
    if value is None:
        return (speedup_words(evaluation, config), "") if column.key == "speedup" else ("", "")
    text, tail = column.text(value), ""
    if column.spread and not (column.key == "speedup" and config.role == "dense"):
        bounds = [evaluation.number(config, *column.path[:-1], key) for key in column.spread]
        known = [column.text(bound) for bound in bounds if bound is not None]
        if len(known) == 2:
            tail = f"[{known[0]}, {known[1]}]".replace("×", "")
    error = evaluation.number(config, *column.error) if column.error else None
    if error is not None:
        tail = f"± {column.text(error)}"
    if column.key == "speedup" and evaluation.state(config) is State.NOISY:
        text = f"noisy {text}"
    return text, tail


def all_small(evaluation: Evaluation, column: Column) -> bool:
    """Whether the small-N flag would stand at every figure of a column."""
    counts = [evaluation.number(config, "n") for config in evaluation.configs]
    return all(small_n(column, count) for count in counts)
