"""`ditaccel bench maps`: records, measures what is missing, and writes table, plot and figures."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from ditaccel.eval.bench.overhead import Clock
from ditaccel.eval.bench.shared import Subject, add_model, open_subject, run_dense
from ditaccel.eval.bench.table import MACHINE, machine, machine_line

from ditaccel.core.transformers import transformers_of
from ditaccel.errors import DitaccelError, UsageError
from ditaccel.io.arguments import add_call, add_out, add_steps, listed, number
from ditaccel.io.files import write_atomically, write_json
from ditaccel.io.given import output_folder
from ditaccel.io.given import whole_argument as whole
from ditaccel.io.models import execution_device, line_of, prompts_for, read_sheet
from ditaccel.io.opening import use_threads
from ditaccel.tuning.observe import observed

from .curves import Row, best_at, curves_of, draw, table, verdicts
from .points import CHOSEN, RESTS, Measured, Point, attention_methods, points_of
from .records import AllSeenError, Recorder, Records, record

HELP = "error against density of every attention map, with what may stand for its rest"

FIELDS = (
    "model", "method", "setting", "rest", "precision", "option", "value", "density", "mass",
    "error", "planning", "kernel", "overlap", "calls", "spec",
)  # fmt: skip
_DIGITS = {"density": 4, "mass": 5, "error": 6, "planning": 4, "kernel": 4, "overlap": 4}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_model(parser, limit=1)
    add_steps(parser)
    add_call(parser)
    add_out(parser, "folder of records, figures and pictures; a run resumes in it", "DIR")
    add = parser.add_argument
    add(
        "--methods",
        type=listed("--methods", str, "NAME,NAME"),
        metavar="NAME,NAME",
        help="attention methods (default: all that are registered)",
    )
    add(
        "--rest",
        nargs="+",
        choices=RESTS,
        default=list(RESTS[:3]),
        help="what stands for tiles that are not computed (default: nothing means moments)",
    )
    add(
        "--precision",
        nargs="+",
        default=[],
        metavar="WORD",
        help="precisions of the scores, where methods have that option (default: their own)",
    )
    _add_calls(parser)


def _add_calls(parser: argparse.ArgumentParser) -> None:
    """Which calls are recorded, and what is made of the figures."""
    add = parser.add_argument
    add(
        "--tile",
        type=whole("--tile", 16),
        metavar="N",
        help="queries and keys per tile, where methods let them be chosen (default: their own); "
        "give it to compare maps at equal density",
    )
    add(
        "--layers",
        type=listed("--layers", whole("--layers", 0)),
        metavar="N,N",
        help="attention layers to record, from 0 (default: four, spread evenly)",
    )
    add(
        "--at",
        type=listed("--at", whole("--at", 0)),
        metavar="N,N",
        help="steps to record, from 0 (default: six in a row, from 40 %% of the run on)",
    )
    add(
        "--heads",
        type=whole("--heads", 1),
        metavar="N",
        help="at most N heads per layer, spread evenly (default: all)",
    )
    add(
        "--density",
        type=_density,
        nargs="+",
        default=[0.05, 0.1, 0.2, 0.3],
        metavar="SHARE",
        help="densities of the printed table, between the points measured "
        "(default 0.05 0.1 0.2 0.3)",
    )
    add(
        "--choose",
        type=number("--choose", 0, 1000, open_ends=True),
        metavar="SHARE",
        help="also choose, for each head, the map of the least error within this share of dense "
        "SDPA's time, and write the config to chosen.yaml",
    )


def _density(text: str) -> float:
    found = number("--density", 0, 1)(text)
    if found == 0:
        raise argparse.ArgumentTypeError("--density must be above 0: at 0 nothing is computed")
    return found


def run(args: argparse.Namespace) -> int:
    """Measure what is not in the folder yet; prints a table of curves."""
    kinds = attention_methods(args.methods)
    folder = output_folder(args.out)
    records = _recorded(args, folder)
    device = torch.device(records.about["device"])
    use_threads(args.threads, str(device))
    clock = Clock.of(device)
    rows: list[Row] = []
    refused: list[tuple[str, str]] = []
    for name, kind in kinds.items():
        measured = Measured(folder, name)
        family = records.about["family"]
        for point in points_of(kind, family, args.rest, args.precision, args.tile):
            if not isinstance(point, Point):
                refused.append(point)
                continue
            row = measured.get(point)
            if row is None:
                row = _measured(point, records, clock, measured, device, refused)
            if row is not None:  # (two settings may be the same)
                own = {"setting": point.setting, "rest": point.rest}
                rows.append({"model": records.about["model"], **row, **own})
        _write(folder, rows, records)
    reasons: dict[str, Counter[str]] = {}
    for label, why in refused:
        reasons.setdefault(why, Counter())[label.rpartition(",")[0] or label] += 1
    for why, labels in reasons.items():
        names = (f"{label} ({count} settings)" for label, count in labels.items())
        print(f"left out: {'; '.join(names)}: {why}", file=sys.stderr)
    _show(folder, rows, args.density, records, device)
    if args.choose is not None:
        rows += _chosen(args.choose, folder, rows, records, clock, device)
        _write(folder, rows, records)
    print(f"written to {folder}")
    return 0


def _measured(
    point: Point,
    records: Records,
    clock: Clock,
    measured: Measured,
    device: torch.device,
    refused: list[tuple[str, str]],
) -> Row | None:
    """The row of a point that was not measured yet, None where it does not suit the model."""
    from .measure import measure

    print(f"{point.method}, {point.setting}, {point.rest}: {point.spec}", file=sys.stderr)
    try:
        figures = measure(point.config, records, clock)
    except (DitaccelError, ValueError) as error:
        refused.append((point.label, line_of(error)))
        return None
    return measured.add(point, {**figures, "machine": machine(device)})


def _chosen(
    budget: float,
    folder: Path,
    rows: Sequence[Row],
    records: Records,
    clock: Clock,
    device: torch.device,
) -> list[Row]:
    """Choose a map for each head, and measure the choice on the calls that it was made from."""
    from ditaccel.config import AccelerationConfig

    from .choice import choose

    config = choose(rows, records, budget)
    AccelerationConfig(attention=config).save(folder / "chosen.yaml")
    point = Point(config.method, CHOSEN, f"{budget:g} of dense", "", "", None, config)
    measured = Measured(folder, config.method)
    row = measured.get(point)
    if row is None:
        refused: list[tuple[str, str]] = []
        row = _measured(point, records, clock, measured, device, refused)
        if row is None:
            raise UsageError(f"{budget:g}: {refused[0][1]}", "choose")
    line = (
        f"a map for each head ({len(config.maps)} of them): {100 * row['density']:.1f} % density, "
        f"error {100 * row['error']:.2f} %, {row['planning'] + row['kernel']:.2f} of dense SDPA's "
        "time"
    )
    single = [c for c in curves_of(rows) if c.setting != CHOSEN]
    best = best_at(single, row["density"])
    if best is not None:
        error = best.at(row["density"], "error")
        assert error is not None
        line += f"; the best map for all heads there: {best.name}, {100 * error:.2f} %"
    print(line)
    return [{"model": records.about["model"], **row}]


def _recorded(args: argparse.Namespace, folder: Path) -> Records:
    """The calls of the model's dense runs, recorded now if they are not there yet."""
    sheet = read_sheet(args.model)
    asked: dict[str, Any] = {
        "model": str(args.model),
        "prompts": prompts_for(args.model, sheet, args.prompts)[: args.limit],
        "call": {key: str(value) for key, value in args.call},
        **{name: getattr(args, name) for name in ("steps", "layers", "at", "heads")},
        **{name: getattr(args, name) for name in ("scheduler", "dtype", "pipeline")},
    }

    def make(place: Path) -> dict[str, Any]:
        changes = {**dict(args.call), "num_inference_steps": args.steps}
        subject = open_subject(args, args.limit, **changes)
        return {**_record(subject, args, place), "model": subject.name}

    return record(folder, asked, make)


def _record(subject: Subject, args: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Record dense runs into a folder; what is known of them."""
    _, adapter = transformers_of(subject.pipe)
    recorder = Recorder(place, args.at, args.layers, args.heads)
    with observed(subject.pipe, recorder) as session:
        for i in range(len(subject.calls)):
            print(f"dense run {i + 1} of {len(subject.calls)}", file=sys.stderr)
            try:
                run_dense(subject, i)
            except AllSeenError:
                session.reset()
    if not recorder.seen:
        raise UsageError("names no step with an attention call that can be recorded", "at")
    print(f"recorded {recorder.seen} calls, {recorder.size / 1e6:.0f} MB", file=sys.stderr)
    device = execution_device(subject.pipe)
    return {"family": adapter.name, "device": str(device), "calls": recorder.seen}


def _write(folder: Path, rows: Sequence[Row], records: Records) -> None:
    """All rows as CSV, and with the figures of each head as JSON."""
    columns = [*FIELDS, *MACHINE]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        short = {k: _rounded(k, v) for k, v in row.items()}
        writer.writerow({**short, **row["machine"]})
    content = text.getvalue().encode()
    write_atomically(folder / "maps.csv", lambda file: file.write(content))
    write_json(folder / "maps.json", {"about": records.about, "rows": list(rows)})


def _rounded(name: str, value: Any) -> Any:
    return round(value, _DIGITS[name]) if name in _DIGITS and value is not None else value


def _show(
    folder: Path,
    rows: Sequence[Row],
    densities: Iterable[float],
    records: Records,
    device: torch.device,
) -> None:
    """Print the table, and draw the plot."""
    curves = curves_of(rows)
    if not curves:
        raise UsageError("none of these methods suits the recorded calls; name others", "methods")
    at = sorted(set(densities))
    about = records.about
    call = records.read(0)
    shape = f"{call.context.length} tokens, {call.q.shape[1]} heads of {call.q.shape[3]}"
    title = f"{about['model']}: {len(records)} calls of {shape}"
    print(f"{machine_line(device)}\n{title}")
    print(table(curves, at))
    for line in verdicts(curves, at):
        print(line)
    try:
        draw(curves, folder / "maps.png", title)
    except ImportError:
        print("no plot: it needs matplotlib (pip install ditaccel[eval])", file=sys.stderr)
