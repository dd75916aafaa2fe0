"""What a cache costs on a computed step, and what a forecast step costs, by dense, in one run.

    ditaccel bench overhead samples/models/shapes-wan

The transformer's calls of a real generation are recorded once and played again, each call dense and
with the method right after one another (the method first in every other round), by a transformer
and a dense twin with the same weights. Of every call the fastest round counts, for each of both:
other work on the machine can only add time. A ratio is of the sums over calls of one kind.

On a CPU two clocks run: CPU time of the process, which other processes barely touch (`ratio`), and
wall-clock (`wall_ratio`). On a GPU both are wall-clock to the end of the device's work.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ditaccel import api
from ditaccel.core.kinds import denoised
from ditaccel.errors import UsageError
from ditaccel.io.asking import calls_of
from ditaccel.io.given import whole_argument as whole
from ditaccel.io.models import execution_device

from .shared import add_csv, add_model, open_subject
from .table import machine_line, write_csv

HELP = "cost of a cache on a computed and on a forecast step"

METHODS = {
    # spec that computes every step -> what a user would take
    "confidence_gated_taylor": ("threshold=0,order=1,block_order=3", "threshold=1e9,block_order=3"),
    "adaptive_taylor": ("tolerance=0", "tolerance=1e9,max_interval=1000"),
    "first_block_residual": ("threshold=0", "threshold=1e9"),
    "taylorseer": ("interval=1,granularity=last_block", "interval=1000,granularity=last_block"),
    "taylorseer (module)": ("interval=1", "interval=1000"),
}
FIELDS = (
    "model",
    "method",
    "step",
    "clock",
    "dense_ms",
    "method_ms",
    "ratio",
    "wall_ratio",
    "calls",
    "rounds",
)

# Seconds that a method's rounds may take where their number is not given, fewest and most of them.
_SECONDS = 30.0
_ROUNDS = (3, 30)

TransformerCall = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Clock:
    """What times are read from.

    Attributes:
        name: `CPU time` or `GPU wall-clock`.
        device: whose work a reading waits for.
    """

    name: str
    device: torch.device

    @classmethod
    def of(cls, device: torch.device) -> Clock:
        """The clock to trust on a device."""
        return cls("GPU wall-clock" if device.type == "cuda" else "CPU time", device)

    def read(self) -> tuple[float, float]:
        """Seconds of this clock, and of wall-clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            now = time.perf_counter()
            return now, now
        return time.process_time(), time.perf_counter()


Times = tuple[float, float]


def record(pipe: Any, call: dict[str, Any], steps: int) -> list[TransformerCall]:
    """Return the arguments of all transformer calls of one generation."""
    calls: list[TransformerCall] = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    try:
        with torch.no_grad():
            pipe(**{**call, "num_inference_steps": steps, **denoised(pipe)})
    finally:
        handle.remove()
    return calls


def dense_twin(transformer: nn.Module) -> nn.Module:
    """A copy of a transformer with the same weights, which no method touches."""
    tensors = (*transformer.parameters(), *transformer.buffers())
    return copy.deepcopy(transformer, {id(tensor): tensor for tensor in tensors})


def play(
    modules: Sequence[nn.Module], calls: Sequence[TransformerCall], clock: Clock, turn: int = 0
) -> list[list[Times]]:
    """Run recorded calls on each module, call by call.

    Args:
        modules: that take turns.
        calls: arguments of each call.
        clock: read around each.
        turn: which module begins.

    Returns:
        For each module the times of its calls, by both clocks.
    """
    taken: list[list[Times]] = [[] for _ in modules]
    order = [(turn + i) % len(modules) for i in range(len(modules))]
    with torch.no_grad():
        for args, kwargs in calls:
            for place in order:
                start = clock.read()
                modules[place](*args, **kwargs)
                end = clock.read()
                taken[place].append((end[0] - start[0], end[1] - start[1]))
    return taken


def fastest(rounds: Sequence[Sequence[Times]]) -> list[Times]:
    """The fastest time of each call, of each clock for itself."""
    return [
        (min(t[0] for t in times), min(t[1] for t in times)) for times in zip(*rounds, strict=True)
    ]


def _summed(times: Sequence[Times], calls: Sequence[int]) -> Times:
    return sum(times[i][0] for i in calls), sum(times[i][1] for i in calls)


def _timed_rounds(
    pipe: Any,
    modules: Sequence[nn.Module],
    spec: str,
    calls: Sequence[TransformerCall],
    rounds: int,
    clock: Clock,
) -> tuple[list[list[Times]], list[str]]:
    """Fastest times of each module's calls, and what the method did in each call."""
    with api.accelerated(pipe, spec):
        play([pipe.transformer], calls, clock)  # whatever is done once is not timed
        actions = [c.action for c in api.report(pipe).last_generation().calls]
        taken = []
        for turn in range(rounds):
            taken.append(play(modules, calls, clock, turn))
            now = [c.action for c in api.report(pipe).last_generation().calls]
            if now != actions:
                raise RuntimeError(f"{spec} did not decide alike in two rounds")
    return [fastest(own) for own in zip(*taken, strict=True)], actions


def measure(
    pipe: Any,
    calls: list[TransformerCall],
    rounds: int | None,
    clock: Clock,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Return one row per method and kind of step.

    Args:
        pipe: the pipeline.
        calls: arguments of the transformer calls of one generation.
        rounds: of which the fastest counts; None takes as many as fit into `_SECONDS` per method.
        clock: what times are read from.
        progress: called with a line before each part.
    """
    rows = []
    ours, twin = pipe.transformer, dense_twin(pipe.transformer)
    play([twin], calls, clock)  # warm-up
    if rounds is None:
        (once,) = play([twin], calls, clock)
        wall = sum(seconds for _, seconds in once)
        rounds = min(max(round(_SECONDS / (2 * wall)), _ROUNDS[0]), _ROUNDS[1])
    for name, specs in METHODS.items():
        dense: list[Times] = []
        for kind, options in zip(("computed", "forecast"), specs, strict=True):
            progress(f"{name}: {kind} steps")
            spec = f"{name.split()[0]}:{options}"
            if kind == "computed":
                (dense, own), actions = _timed_rounds(
                    pipe, (twin, ours), spec, calls, rounds, clock
                )
            else:
                # next to a forecast step, noise in the dense one counts for nothing
                (own,), actions = _timed_rounds(pipe, (ours,), spec, calls, rounds, clock)
            wanted = "compute" if kind == "computed" else "forecast"
            chosen = [i for i, action in enumerate(actions) if action == wanted]
            if not chosen:
                raise UsageError(
                    f"{name}: of {len(actions)} calls none was a {kind} step, so there is nothing "
                    "to time; give more --steps"
                )
            a, b = _summed(dense, chosen), _summed(own, chosen)
            rows.append(
                {
                    "method": name,
                    "step": kind,
                    "clock": clock.name,
                    "dense_ms": round(1e3 * a[0] / len(chosen), 3),
                    "method_ms": round(1e3 * b[0] / len(chosen), 3),
                    "ratio": round(b[0] / a[0], 4),
                    "wall_ratio": round(b[1] / a[1], 4),
                    "calls": len(chosen),
                    "rounds": rounds,
                }
            )
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_model(parser)
    add = parser.add_argument
    add(
        "--steps",
        type=whole("--steps", 2),
        default=6,
        metavar="N",
        help="scheduler steps of the recorded generation (default 6)",
    )
    add(
        "--rounds",
        type=whole("--rounds", 1),
        metavar="N",
        help="rounds, of which the fastest counts (default: 3 to 30, as many as fit into half a "
        "minute per method)",
    )
    add_csv(parser)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; prints a table and, with `--out`, writes a CSV."""
    subject = open_subject(args)
    pipe = subject.pipe
    if not isinstance(getattr(pipe, "transformer", None), nn.Module):
        raise UsageError(f"{type(pipe).__name__} has no transformer to time")
    call = {**subject.calls[0], "generator": torch.Generator("cpu").manual_seed(0)}
    with calls_of(pipe, "bench"):
        calls = record(pipe, call, args.steps)
    clock = Clock.of(execution_device(pipe))
    print(machine_line(clock.device))
    print(f"{subject.name}: {len(calls)} transformer calls, {clock.name}")
    rows = measure(pipe, calls, args.rounds, clock, lambda line: print(line, file=sys.stderr))
    form = "{method:<24}{step:<9}{dense_ms:>9}{method_ms:>10}{ratio:>8}{wall_ratio:>11}{rounds:>7}"
    print(form.format_map({name: name for name in FIELDS}))
    for row in rows:
        print(form.format_map(row))
    write_csv(args.out, FIELDS, ({"model": subject.name, **row} for row in rows), clock.device)
    return 0
