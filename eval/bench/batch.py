"""Throughput of `ditaccel generate` against the loop that everybody writes first, caching off.

    ditaccel bench batch samples/models/shapes-wan

The loop is `for prompt in prompts: export(pipe(prompt))` in one process, with one thread per core,
which is torch's default, and with a single one; the others are compared with the better of the two.
Every setup runs in processes of its own, in turns, so that noise of the machine hits all alike. Two
times are taken: of the whole command, and from the start of the first item to the end of the last,
which is what counts for thousands of items. Caching is off in all of them: this is what overlap and
workers give, not what a method gives.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ditaccel.core.kinds import decoded, pictures_of
from ditaccel.errors import UsageError
from ditaccel.io import arguments as options
from ditaccel.io import given
from ditaccel.io.asking import asked
from ditaccel.io.files import read_lines
from ditaccel.io.given import whole_argument as whole
from ditaccel.io.models import prompts_for, read_sheet
from ditaccel.io.opening import choose_device, open_pipeline
from ditaccel.io.progress import duration

from .shared import add_csv, add_model
from .table import machine_line, write_csv

HELP = "a batch job against the plain loop, caching off"

FIELDS = (
    *("model", "setup", "workers", "setup_threads", "items", "steps", "frames"),
    *("span_s", "wall_s", "items_per_min", "ratio", "repeats"),
)
FPS = 16


def setups(cores: int) -> dict[str, dict[str, Any]]:
    """Name -> options of each way to make the items on a CPU."""
    return {
        "loop": {"loop": True, "workers": 1, "threads": cores},
        "loop, 1 thread": {"loop": True, "workers": 1, "threads": 1},
        "generate, no overlap": {"workers": 1, "threads": 1, "options": ["--no-overlap"]},
        "generate": {"workers": 1, "threads": 1},
        "generate, batches of 4": {"workers": 1, "threads": 1, "options": ["--batch", "4"]},
        f"generate, {cores} threads": {"workers": 1, "threads": cores},
        f"generate, {cores} workers": {"workers": cores, "threads": 1},
    }


def plain_loop(task: dict[str, Any], out: Path) -> float:
    """Make the items as a first script would; returns seconds without loading."""
    import torch
    from diffusers.utils import encode_video

    opened = open_pipeline(task["model"], task["device"], task["dtype"], task["pipeline"])
    pipe, call = opened.pipe, {**opened.call, **task["call"]}
    start = time.perf_counter()
    for number, prompt in enumerate(task["prompts"]):
        generator = torch.Generator().manual_seed(0)
        made = pipe(**asked(pipe, prompt), generator=generator, **decoded(pipe), **call)
        # With PyAV as ours: `export_to_video` needs imageio or OpenCV, and does the same after it.
        encode_video(pictures_of(pipe, made)[0], FPS, str(out / f"{number}.mp4"))
    return time.perf_counter() - start


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}


def _run(command: list[str], threads: int) -> tuple[str, float]:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", "-m", *command],
        capture_output=True,
        text=True,
        env=_environment(threads),
    )
    if done.returncode:
        raise UsageError(f"{command[0]} failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout, time.perf_counter() - start


def measure(task: dict[str, Any], setup: dict[str, Any], folder: Path) -> tuple[float, float]:
    """Run one setup once; returns seconds from first start to last end, and of the command.

    Args:
        task: `model`, `prompts`, `call`, `device`, `dtype` and `pipeline`.
        setup: one of `setups`.
        folder: an empty one.
    """
    if setup.get("loop"):
        file = folder / "task.json"
        file.write_text(json.dumps(task))
        printed, wall = _run(["ditaccel.eval.bench.batch", str(file)], setup["threads"])
        return float(printed.strip().splitlines()[-1]), wall
    jobs = folder / "jobs.txt"
    jobs.write_text("\n".join(task["prompts"]))
    command = [
        *("ditaccel", "generate", task["model"], "--jobs", str(jobs), "--out", str(folder / "out")),
        *("--config", "none", "--fps", str(FPS), "--crf", "23", "--quiet"),
        *("--workers", str(setup["workers"]), "--threads", str(setup["threads"])),
        *setup.get("options", []),
    ]
    for option in ("device", "dtype", "pipeline"):
        if task[option] is not None:
            command += [f"--{option}", task[option]]
    for key, value in task["call"].items():
        command += ["--call", f"{key}={json.dumps(value)}"]
    _, wall = _run(command, setup["threads"])
    lines = read_lines(folder / "out" / "results.jsonl")
    return max(r["finished"] for r in lines) - min(r["began"] for r in lines), wall


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_model(parser, limit=8, threads=False)
    options.add_renamed(parser, "--items", "is called --limit now")
    options.add_steps(parser)
    add = parser.add_argument
    add(
        "--frames",
        type=whole("--frames", 1),
        metavar="N",
        help="frames per video (default: the model's own)",
    )
    add("--repeats", type=whole("--repeats", 1), default=1, metavar="N", help="(default 1)")
    add("--only", nargs="*", metavar="NAME", help="only these setups (default: all)")
    add_csv(parser)


def _task(args: argparse.Namespace) -> dict[str, Any]:
    """What every setup makes."""
    sheet = read_sheet(args.model)
    if "video" not in sheet.task:
        raise UsageError(
            f"{args.model} is not a video model by its sample.json (task: {sheet.task or 'none'}); "
            "this benchmark compares loops that write mp4 files"
        )
    call = dict(sheet.call)
    for key, value in (("num_inference_steps", args.steps), ("num_frames", args.frames)):
        if value is not None:
            call[key] = value
    prompts = list(dict.fromkeys(prompts_for(args.model, sheet, args.prompts)))[: args.limit]
    task = {"model": str(args.model), "prompts": prompts, "call": call}
    return task | {"device": args.device, "dtype": args.dtype, "pipeline": args.pipeline}


def _chosen(only: list[str] | None, cores: int) -> dict[str, dict[str, Any]]:
    known = setups(cores)
    for name in only or ():
        if name not in known:
            raise UsageError(f"{name!r}{given.suggest(name, known)}", "only")
    return {name: setup for name, setup in known.items() if not only or name in only}


def _rows(
    task: dict[str, Any],
    chosen: dict[str, dict[str, Any]],
    times: dict[str, list[tuple[float, float]]],
) -> list[dict[str, Any]]:
    """One row per setup: medians over its repeats, and by how much it beats the better loop."""
    loops = [statistics.median(t[0] for t in times[n]) for n in chosen if "loop" in chosen[n]]
    rows = []
    for name, setup in chosen.items():
        span, wall = (statistics.median(column) for column in zip(*times[name], strict=True))
        rows.append(
            {
                "model": Path(task["model"]).name,
                "setup": name,
                "workers": setup["workers"],
                "setup_threads": setup["threads"],
                "items": len(task["prompts"]),
                "steps": task["call"].get("num_inference_steps"),
                "frames": task["call"].get("num_frames"),
                "span_s": round(span, 2),
                "wall_s": round(wall, 2),
                "items_per_min": round(60 * len(task["prompts"]) / span, 3),
                "ratio": round(min(loops, default=span) / span, 3),
                "repeats": len(times[name]),
            }
        )
    return rows


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; prints a table and, with `--out`, writes a CSV."""
    task = _task(args)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    chosen = _chosen(args.only, cores or 1)
    device = choose_device(args.device)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
    for repeat in range(args.repeats):
        for name, setup in chosen.items():
            print(f"repeat {repeat + 1}: {name}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                times[name].append(measure(task, setup, Path(folder)))
    rows = _rows(task, chosen, times)
    print(machine_line(device))
    print(f"{rows[0]['model']}: {rows[0]['items']} items, {cores} cores")
    print(f"{'setup':<26}{'items':>12}{'with loading':>14}{'by the better loop':>20}")
    for row in rows:
        print(
            f"{row['setup']:<26}{duration(row['span_s']):>12}{duration(row['wall_s']):>14}"
            f"{row['ratio']:>19}×"
        )
    write_csv(args.out, FIELDS, rows, device)
    return 0


if __name__ == "__main__":
    file = Path(sys.argv[1])
    print(plain_loop(json.loads(file.read_text()), file.parent))
