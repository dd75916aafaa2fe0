"""A protocol of the literature, run through batch jobs, beside what others have published.

    ditaccel bench protocol flux-drawbench MODEL --prompts DrawBench200.txt --config fast --out out

Each row is a batch job in a folder of its own: it resumes, and `--shard 3/16` makes one part of
each row. When all items are there, the same command without `--shard` compares them with dense.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from ditaccel.batch.facts import read_facts
from ditaccel.batch.generate import generate
from ditaccel.errors import UsageError
from ditaccel.io import arguments as options
from ditaccel.io import given
from ditaccel.io.factory import read_factory
from ditaccel.io.files import write_atomically, write_json
from ditaccel.io.given import whole_argument as whole
from ditaccel.io.models import read_sheet

from ..command import metric_file
from ..judge import Judge, missing
from ..metrics.base import METRICS
from ..options import Options
from ..protocols.protocol import Protocol, load, names
from ..protocols.score import Scores, outputs_of

HELP = "a protocol of the literature beside published rows: prompts, seeds, steps and metrics"
TABLE, SUMMARY = "table.md", "protocol.json"
_STEPS = re.compile(r"steps:(\d+)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `ditaccel bench protocol`."""
    add = parser.add_argument
    add("protocol", metavar="PROTOCOL", help=f"{', '.join(names())}, or a YAML file")
    options.add_model(parser)
    add(
        "--config",
        action="append",
        default=[],
        metavar="SPEC",
        help="a row: preset, YAML file, method:option=value or steps:N; repeatable",
    )
    options.add_out(parser, "folder of the run", "DIR")
    options.add_prompts(parser)
    options.add_limit(parser, of="samples")
    options.add_steps(parser)
    options.add_call(parser)
    add("--features", metavar="WHAT", help="feature extractor behind FID, as in `ditaccel eval`")
    add("--real", metavar="PATH", help="real frames for FID: a folder or an npz file")
    add(
        "--weights",
        action="append",
        type=metric_file,
        default=[],
        metavar="METRIC=PATH",
        help="weights of a metric that needs some, such as lpips=FILE; repeatable",
    )
    options.add_running(parser)
    options.add_scheduler(parser)
    add("--workers", type=whole("--workers", 1), metavar="N", help="processes of each job")
    add("--batch", type=whole("--batch", 1), metavar="N", help="items of one shape per call")
    add("--shard", metavar="I/N", help="make only this part of each row")
    add("--dry-run", action="store_true", help="show what would be made, and load nothing")
    options.add_json(parser, "the summary")
    options.add_quiet(parser)


def _folders(configs: list[str]) -> dict[str, str]:
    """Name of the row's folder -> text of its config."""
    found = {"dense": "none"}
    for text in configs:
        name = re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:60] or "row"
        while name in found:
            name += "-"
        found[name] = text
    return found


def _prompts(protocol: Protocol, args: argparse.Namespace) -> str | None:
    """File of the prompts: the user's, else the model's where the protocol takes those.

    Raises:
        UsageError: the protocol takes the model's, which has none.
    """
    if args.prompts or not protocol.own_prompts:
        return None if args.prompts is None else str(args.prompts)
    own = read_sheet(args.model).prompts
    if own is None:
        raise UsageError(
            f"{protocol.name} takes the prompts of the sample {protocol.model}, and {args.model} "
            "has none; where that sample is missing, it is not shipped yet: samples/README.md says "
            "how it is trained"
        )
    return str(own)


def _deviations(
    protocol: Protocol, args: argparse.Namespace, rows: int, pipeline: str
) -> list[str]:
    """Where the run departs from the protocol."""
    found = []
    if rows != protocol.samples:
        found.append(f"{rows} samples, not {protocol.samples}")
    if args.steps is not None and args.steps != protocol.steps:
        found.append(f"{args.steps} steps, not {protocol.steps}")
    if args.scheduler and args.scheduler != protocol.scheduler:
        usual = protocol.scheduler or "the model's own"
        found.append(f"scheduler {args.scheduler}, not {usual}")
    found += [f"{key}={value}" for key, value in args.call if protocol.call.get(key) != value]
    if pipeline != protocol.pipeline:
        found.append(f"a {pipeline}, not a {protocol.pipeline}")
    if not (args.features or "").startswith(protocol.features):
        found.append(f"features of {args.features or 'the model'}, not of {protocol.features}")
    return found


def _make(protocol: Protocol, args: argparse.Namespace, rows: list[dict[str, Any]]) -> int:
    """Make what is left of each row; returns how many items failed."""
    chosen: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("device", "dtype", "threads", "pipeline", "workers", "batch", "shard")
        if getattr(args, name) is not None
    }
    chosen |= {"save": protocol.save, "quiet": args.quiet}
    chosen["scheduler"] = args.scheduler or protocol.scheduler or None
    if protocol.template:
        chosen["name"] = protocol.template
    failed = 0
    for name, config in _folders(args.config).items():
        fewer = _STEPS.fullmatch(config)
        steps = int(fewer[1]) if fewer else args.steps or protocol.steps
        made = generate(
            args.model,
            rows,
            args.out / name,
            None if fewer or config == "none" else config,
            call={**protocol.call, **dict(args.call)},
            steps=steps,
            **chosen,
        )
        failed += made.failed
    return failed


def _score(protocol: Protocol, args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Figures of each row by its config, and how many items are missing."""
    folders = _folders(args.config)
    outputs = {name: outputs_of(args.out / name) for name in folders}
    left = sum(missing for _, missing in outputs.values())
    if left:
        return {}, left
    settings = Options(features=args.features, real=args.real, weights=dict(args.weights))
    judge = Judge(settings, read_sheet(args.model), None)
    scores = Scores(judge, protocol.metrics, outputs["dense"][0])
    rows = {
        text: scores.row(outputs[name][0], args.out / f"{name}.scores.jsonl", name == "dense")
        for name, text in folders.items()
    }
    return {"rows": rows, "missing": scores.missing}, 0


def _table(protocol: Protocol, summary: dict[str, Any]) -> str:
    """Own rows and published ones, as Markdown."""
    keys = [key for key in protocol.metrics if _is_known(key, protocol, summary["rows"])]

    def cell(key: str, row: dict[str, Any]) -> str:
        value = row.get(key)
        if value is None:
            return "–"
        text = METRICS[key].write(METRICS[key].numbers()[0], value)
        if key == "psnr" and "psnr_min" in row:
            text += f" (worst {row['psnr_min']:.1f})"
        low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
        return text if low is None else f"{text} [{low:.2f}, {high:.2f}]"

    lines = [
        f"# {protocol.title}",
        "",
        protocol.about + ".",
        "",
        "| row | speed-up | " + " | ".join(METRICS[key].title for key in keys) + " | source |",
        "|---|---:|" + "---:|" * len(keys) + "---|",
    ]
    for text, row in summary["rows"].items():
        speed = f"{row['speedup']:.2f}×" if "speedup" in row else "1×"
        cells = " | ".join(cell(key, row) for key in keys)
        name = "dense" if text == "none" else f"`{text}`"
        lines.append(f"| {name} | {speed} | {cells} | measured here, N = {row['n']} |")
    for published in protocol.published:
        cells = " | ".join(cell(key, dict(published.figures)) for key in keys)
        speed = published.speedup or "–"
        lines.append(f"| *{published.label}* | {speed} | {cells} | published: {published.source} |")
    notes = (
        [f"not the protocol: {'; '.join(summary['deviations'])}"] if summary["deviations"] else []
    )
    if not all(row.get("same_machine", True) for row in summary["rows"].values()):
        notes.append("dense and other rows ran on different machines: speed-ups are not comparable")
    notes += [f"not available: {key}: {how}" for key, how in summary["missing"].items()]
    notes += [f"not measured here: {protocol.elsewhere}"] if protocol.elsewhere else []
    notes.append(
        "speed-ups are of batch jobs, one after the other, whose workers load each other; "
        "`ditaccel eval` times rows next to dense runs"
    )
    if protocol.published:
        notes.append(
            f"published rows are of {protocol.model or 'other checkpoints'}, of their authors' "
            "machines and partly of other prompts; none of them was measured here"
        )
    return "\n".join([*lines, "", *(f"* {note}" for note in notes), ""])


def _is_known(key: str, protocol: Protocol, rows: dict[str, Any]) -> bool:
    own = any(row.get(key) is not None for row in rows.values())
    return key in METRICS and (own or any(key in row.figures for row in protocol.published))


def _plan(protocol: Protocol, args: argparse.Namespace, rows: list[dict[str, Any]]) -> list[str]:
    call = {**protocol.call, **dict(args.call)}
    lines = [
        f"protocol: {protocol.title}: {protocol.about}",
        f"rows: {', '.join(_folders(args.config).values())}, {len(rows)} samples each",
        f"call: {args.steps or protocol.steps} steps, scheduler "
        f"{args.scheduler or protocol.scheduler or 'as the model has it'}"
        + "".join(f", {key}={value}" for key, value in call.items()),
        f"files: {', '.join(protocol.save)} in {args.out}",
        f"published rows beside them: {len(protocol.published)}",
    ]
    lines += [f"  {row}" for row in rows[:3]]
    own = read_sheet(args.model).features
    features = args.features != "none" if args.features else own is not None and own.is_dir()
    for key in protocol.metrics:
        why = missing(METRICS[key], dict(args.weights), features, args.real is not None)
        lines += [] if why is None else [f"not measured: {key}: {why}"]
    return [*lines, f"not measured here: {protocol.elsewhere}"] if protocol.elsewhere else lines


def run(args: argparse.Namespace) -> int:
    """Run a protocol.

    Returns:
        0; 1 where items of other shards are missing; 3 where items failed.

    Raises:
        DitaccelError: unusable input, in one line.
    """
    protocol = load(args.protocol)
    args.out = given.output_folder(args.out)
    rows = protocol.rows(_prompts(protocol, args), args.limit)
    facts = read_facts(args.model, read_factory(args.pipeline) if args.pipeline else None)
    if bool(protocol.classes) != facts.by_class:
        asked = "class" if facts.by_class else "prompt"
        raise UsageError(
            f"{protocol.name} is for a {protocol.pipeline}; {facts.pipeline} is asked by {asked}"
        )
    deviations = _deviations(protocol, args, len(rows), facts.pipeline)
    if args.dry_run:
        lines = _plan(protocol, args, rows)
        lines += [f"not the protocol: {'; '.join(deviations)}"] if deviations else []
        print("\n".join(lines))
        return 0
    failed = _make(protocol, args, rows)
    if failed:
        print(f"{failed} items failed; their reasons are in the jobs' results.jsonl in {args.out}")
        return 3
    summary, left = _score(protocol, args)
    if left:
        print(f"{left} items are missing: run the other shards, then this command without --shard")
        return 1
    summary = {"protocol": protocol.name, "model": args.model, "deviations": deviations, **summary}
    text = _table(protocol, summary)
    write_json(Path(args.out) / SUMMARY, summary)
    write_atomically(Path(args.out) / TABLE, lambda file: file.write(text.encode()))
    print(json.dumps(summary, indent=1) if args.json else text)
    return 0
