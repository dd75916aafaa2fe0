"""Throughput of `ditaccel generate` against the loop that everybody writes first, caching off.

    ditaccel bench batch samples/models/shapes-wan

The loop is `for prompt in prompts: export(pipe(prompt))` in one process, with a thread for each
core, as torch takes by default, and with one; the better of the two is what the others are held
against.
Every setup runs in processes of its own, in turns, so that noise of the machine hits all alike. Two
times are taken: of the whole command, and from the first item's start to the last one's end, which
is what thousands of items take. Caching is off in all of them: this is what overlap and workers
give, not what a method gives.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ditaccel.errors import UsageError
from ditaccel.io import given
from ditaccel.io.asking import asked
from ditaccel.io.files import read_lines
from ditaccel.io.given import whole_argument as whole
from ditaccel.io.models import read_prompts, read_sheet
from ditaccel.io.opening import open_pipeline
from ditaccel.io.progress import duration

from .shared import add_model, write_csv

HELP = "a batch job compared with the plain loop, without caching"

FIELDS = (
    *("model", "setup", "workers", "threads", "items", "steps", "frames"),
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
        made = pipe(**asked(pipe, prompt), generator=generator, output_type="np", **call)
        # With PyAV as ours: `export_to_video` needs imageio or OpenCV, and does the same after it.
        encode_video(made.frames[0], FPS, str(out / f"{number}.mp4"))
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
    add_model(parser)
    add = parser.add_argument
    add("--items", type=whole("--items", 1), default=8)
    add("--steps", type=whole("--steps", 1), help="default: the model's")
    add("--frames", type=whole("--frames", 1), help="default: the model's")
    add("--repeats", type=whole("--repeats", 1), default=1)
    add("--only", nargs="*", metavar="NAME", help="names of setups")
    add("--out", type=Path, help="CSV to append to")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; prints a table and, with `--out`, writes a CSV."""
    sheet = read_sheet(args.model)
    source = args.prompt_file or sheet.prompts
    if "video" not in sheet.task:
        raise UsageError(
            f"{args.model} is not a video model by its sample.json (task: {sheet.task or 'none'}); "
            "this benchmark holds loops that write mp4 files against each other"
        )
    if source is None:
        raise UsageError("give --prompt-file FILE: the model folder names no prompts of its own")
    call = dict(sheet.call)
    for key, value in (("num_inference_steps", args.steps), ("num_frames", args.frames)):
        if value is not None:
            call[key] = value
    prompts = list(dict.fromkeys(read_prompts(source)))[: args.items]
    task = {"model": str(args.model), "prompts": prompts, "call": call}
    task |= {"device": args.device, "dtype": args.dtype, "pipeline": args.pipeline}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    known = setups(cores or 1)
    for name in args.only or ():
        if name not in known:
            raise UsageError(f"--only {name!r}{given.suggest(name, known)}")
    chosen = {n: s for n, s in known.items() if not args.only or n in args.only}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
    for repeat in range(args.repeats):
        for name, setup in chosen.items():
            print(f"repeat {repeat + 1}: {name}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                seconds = measure(task, setup, Path(folder))
                times[name].append(seconds)
    rows = []
    for name, setup in chosen.items():
        span, wall = (statistics.median(column) for column in zip(*times[name], strict=True))
        loops = [statistics.median(t[0] for t in times[n]) for n in chosen if "loop" in chosen[n]]
        base = min(loops, default=span)
        rows.append(
            {
                "model": Path(args.model).name,
                "setup": name,
                "workers": setup["workers"],
                "threads": setup["threads"],
                "items": len(prompts),
                "steps": call.get("num_inference_steps"),
                "frames": call.get("num_frames"),
                "span_s": round(span, 2),
                "wall_s": round(wall, 2),
                "items_per_min": round(60 * len(prompts) / span, 3),
                "ratio": round(base / span, 3),
                "repeats": args.repeats,
            }
        )
    print(f"{Path(args.model).name}: {len(prompts)} items, {cores} cores, {platform.processor()}")
    print(f"{'setup':<26}{'items':>12}{'with loading':>14}{'by the better loop':>20}")
    for row in rows:
        print(
            f"{row['setup']:<26}{duration(row['span_s']):>12}{duration(row['wall_s']):>14}"
            f"{row['ratio']:>19}×"
        )
    write_csv(args.out, FIELDS, rows, append=True)
    return 0


if __name__ == "__main__":
    file = Path(sys.argv[1])
    print(plain_loop(json.loads(file.read_text()), file.parent))
