"""The shape of an evaluation's files: what a reader may trust once it has been checked."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from ditaccel.errors import UsageError
from ditaccel.io.checked import (
    LARGE,
    Check,
    WrongShape,
    anything,
    choice,
    either,
    flag,
    items,
    maybe,
    number,
    read_record,
    read_records,
    record,
    row,
    table,
    text,
    whole,
)
from ditaccel.io.files import read_json

from .measure.pairs import State
from .metrics.base import ACCURACY, Better, Need, Per, Shown, Unit, metrics
from .specs import COMPARED, Role
from .summary.pareto import Where
from .summary.verdicts import Basis, Kind, Level, Missing

# Of `run.json` and all beside it. 2: rows are timed in pairs, verdicts are data.
SCHEMA = 2
AGAIN = "run the evaluation again, into another folder"

_SECONDS = number(1e-9, 1e9)
_SHARE = number(0, 1e3)
_DB = number(-1000, 1000)
_SPEEDUP = number(1e-6, 1e6)
_ROLE = choice(*Role)


def _inside(value: Any, at: str) -> str:
    """A path below the folder: a changed file must not lead a reader elsewhere."""
    name = text(value, at)
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name or len(name) > 1000:
        raise WrongShape(f"{at} must be a path inside the folder")
    return name


def _short(value: Any, at: str) -> str:
    """A name: not empty, and of a length that a file name or a table can have."""
    name = text(value, at)
    if not 0 < len(name) <= 1000:
        raise WrongShape(f"{at} must be a text of 1 to 1000 characters")
    return name


_TIMING = record(
    {"seconds": _SECONDS},
    {
        "process": number(0, 1e9),
        "device": number(0, 1e9),
        "wait": number(0, 1e9),
        "denoiser": number(0, 1e9),
    },
)
_PAIR = record({"dense": _TIMING, "row": _TIMING})

_CONFIG = record(
    {"id": _short, "label": _short, "series": _short, "role": _ROLE, "spec": text},
    {"knob": maybe(number()), "sparse": flag},
)


def _word(value: Any, at: str) -> str:
    """The key of a metric or score."""
    key = _short(value, at)
    if not key.isidentifier():
        raise WrongShape(f"{at} must be a word such as psnr, not {key!r}")
    return key


def _by_word(check: Check) -> Check:
    """Return a check for an object whose keys are those of metrics or scores."""

    def checked(value: Any, at: str) -> dict[str, Any]:
        found: dict[str, Any] = table(check)(value, at)
        for key in found:
            _word(key, f"a key of {at}")
        return found

    return checked


_METRIC = record(
    {
        "key": _word,
        "title": text,
        "unit": choice(*Unit),
        "better": choice(*Better),
        "about": text,
        "per": choice(*Per),
        "needs": items(choice(*Need)),
        "shown": choice(*Shown),
    }
)
_DEVICE = record({}, {"name": maybe(text), "type": text})
_CEILINGS = record(
    {
        "flops": number(1, 1e30),
        "bytes": number(1, 1e30),
        "copied": whole(1),
        "itemsize": whole(1, 16),
    }
)
_MACHINE = record(
    {},
    {
        "device": _DEVICE,
        "versions": table(anything),
        "ceilings": maybe(_CEILINGS),
        "left_out": whole(0),
    },
)
_RUN = record(
    {"configs": items(_CONFIG, 1)},
    {
        "model": text,
        "family": maybe(text),
        "task": maybe(text),
        "call": table(anything),
        "prompts": items(text),
        "seeds": items(whole()),
        "device": _DEVICE,
        "versions": table(anything),
        "commit": maybe(text),
        "command": maybe(text),
        "dtype": text,
        "fps": maybe(number(1e-3, 1e3)),
        "memory": maybe(text),
        "metrics": items(_METRIC),
        "pairs": whole(1),
        "machines": items(_MACHINE, 1),
        "ceilings": maybe(_CEILINGS),
        "merged": items(text),
    },
)

_CALL = row(whole(0, 10**6), text, text, maybe(text), maybe(number()))
_GENERATION = {
    "config": _short,
    "sample": _short,
    "seconds": _SECONDS,
    "timing": _TIMING,
    "pairs": items(_PAIR),
    "calls": items(_CALL),
    "media": _inside,
}
_GENERATION_MAY = {
    "denoise_seconds": maybe(number(0, 1e9)),
    "reported_share": maybe(_SHARE),
    "least_share": maybe(_SHARE),
    "peak_memory_bytes": maybe(number(0, LARGE)),
    "work": number(0, 1e300),
    "device": record({}, {"name": maybe(text)}),
    # Of several: which machine of a merged run, and how many workers shared it.
    "machine": whole(0, 10**6),
    "workers": whole(1, 10**6),
}
GENERATION = record({**_GENERATION, "work": number(0, 1e300)}, _GENERATION_MAY)

_VALUE = maybe(either(flag, number()))
_ESSENTIAL = {Unit.DB: _DB, Unit.FLAG: flag}


def _values(value: Any, at: str) -> dict[str, Any]:
    """What was measured on a sample: any metric's number or flag, and those that all rest on."""
    essential = [metric for metric in metrics() if metric.essential]
    needed = {m.key: _ESSENTIAL.get(Unit(m.unit), number(0)) for m in essential}
    found: dict[str, Any] = record(needed)(_by_word(_VALUE)(value, at), at)
    return found


RESULT = record(
    {
        **_GENERATION,
        "prompt": text,
        "seed": whole(),
        "metrics": _values,
        "computed_share": _SHARE,
    },
    {**_GENERATION_MAY, "finite": flag},
)
FAILURE = record({"config": _short, "sample": _short, "error": text})
WARMUP = record(
    {"config": _short, "seconds": number(-1e9, 1e9), "kept_bytes": number(0, LARGE)},
    dict.fromkeys(("flops", "attention_flops", "work"), number(0, 1e300)),
)

_SPREAD = record({"median": number()}, {k: number() for k in ("p10", "p25", "p75", "p90")})
_SPEEDUPS = record(dict.fromkeys(("median", "p25", "p75"), _SPEEDUP))
_TIMED = record(
    {"state": choice(*State), "reason": text},
    {"wall": maybe(_SPEEDUP), "own": maybe(_SPEEDUP), "clock": text},
)
_STATS = record(
    {
        "n": whole(0, 10**9),
        # The yardstick of the verdicts; its other figures are checked where they are shown.
        "psnr": record({"mean": _DB}, {"kept": maybe(number(0, 1)), "p5": maybe(_DB)}),
        "speedup": maybe(_SPEEDUPS),
        "timing": _TIMED,
        "computed_share": _SHARE,
    },
    {
        "seconds": maybe(_SPREAD),
        ACCURACY: _by_word(maybe(number())),
        "denoiser_speedup": maybe(_SPEEDUPS),
        **dict.fromkeys(
            (
                "efficiency",
                "denoiser_efficiency",
                "peak_memory_bytes",
                "floor_seconds",
                "floor_share",
            ),
            maybe(number()),
        ),
    },
)
_MATCH = record(
    {
        "psnr": _DB,
        "series": _short,
        "role": choice(*COMPARED),
        "where": choice(*Where),
        "note": text,
    },
    {"speedup": maybe(_SPEEDUP), "computed_share": maybe(_SHARE)},
)
_VERDICT = record(
    {"kind": choice(*Kind), "level": choice(*Level), "text": text},
    {
        "config": maybe(text),
        "basis": choice(*Basis),
        "fewer_psnr": maybe(_DB),
        "lost": items(text),
    },
)
_HEADLINE = record(
    {},
    {
        **{name: maybe(text) for name in ("config", "fewer", "peer")},
        "missing": maybe(choice(*Missing)),
    },
)
_TIMED_ON = record(
    {"name": text, "samples": whole(0, 10**9), "speedup": table(_SPEEDUP)},
    {"dense_seconds": maybe(number(0, 1e9))},
)
SUMMARY = record(
    {"configs": table(_STATS), "verdicts": items(_VERDICT)},
    {
        "matched": items(_MATCH),
        "dominated": table(text),
        "headline": _HEADLINE,
        "timing": record({"trusted": flag, "text": text}),
        "not_available": table(text),
        "unavailable": table(text),
        "failures": items(FAILURE),
        "dense_repeats": maybe(flag),
        "machines": items(_TIMED_ON),
        "limits": record({}, {"text": text, "beaten": flag}),
    },
)


def read_run(path: Path) -> dict[str, Any]:
    """The checked content of `run.json`.

    Raises:
        UsageError: missing, damaged, or of another version: one line that says what to do.
    """
    data = read_json(path)
    if not isinstance(data, dict):
        raise UsageError(f"{path} is damaged: it must hold a JSON object; {AGAIN}")
    schema = data.get("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        if schema == 1:
            why = "its rows were not timed in pairs, so its speed-ups cannot be checked"
            raise UsageError(f"{path} is of an earlier version (schema 1): {why}; {AGAIN}")
        shown = str(schema)[:40].encode("unicode_escape").decode()
        raise UsageError(f"{path} has schema {shown}, this version reads {SCHEMA}; {AGAIN}")
    run: dict[str, Any] = read_record(path, _RUN, AGAIN)
    for key in ("id", "label"):
        names = [config[key] for config in run["configs"]]
        if len(set(names)) < len(names):
            raise UsageError(f"{path} is damaged: two of its configs share their {key}; {AGAIN}")
    return run


def read_all(path: Path, check: Check) -> list[dict[str, Any]]:
    """The checked lines of one of the run's JSON-lines files."""
    return read_records(path, check, "delete that line and run the same command again")
