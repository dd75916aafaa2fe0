"""How hard is a model for a cache or for sparse attention? Statistics of its dense runs.

    ditaccel bench trajectory samples/models/shapes-flux --limit 4

How far the guided output moves from step to step, how well a line through two outputs meets the
next one, what is left of a picture with half the steps or with TaylorSeer, how much another
precision alone changes, and how few tiles carry the attention. Figures that methods reach on a
model say little about one whose own figures here are far away.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from ditaccel import api
from ditaccel.core.kinds import decoded, pictures_of
from ditaccel.core.transformers import transformers_of
from ditaccel.errors import DitaccelError, UsageError
from ditaccel.io.arguments import add_out, add_steps, number
from ditaccel.io.asking import calls_of
from ditaccel.io.frames import to_uint8
from ditaccel.io.given import whole_argument as whole
from ditaccel.tuning.observe import observed

from ..metrics.psnr import psnr
from .shared import Subject, add_model, open_subject
from .trajectory_stats import (
    AttentionWatcher,
    Residuals,
    Trajectory,
    as_initialised,
    other_precision,
    watched,
)

HELP = "how hard a model is: how its outputs move, what half the steps do"

SPEED = 2.1
PARTS = {"start": (0.0, 0.2), "middle": (0.2, 0.8), "end": (0.8, 1.0)}
RANDOM = (
    "the weights of this model look random: outputs hardly depend on the step then, so all that "
    "stands above means nothing"
)
# Of real models, 50 steps unless said otherwise: ranges that TeaCache fitted its polynomials over,
# L2P's learned weights, the tables of SeaCache (half the steps) and TAFC (TaylorSeer), and the
# ratios that MagCache ships.
PUBLISHED = {
    "change from step to step": "FLUX.1-dev .18-.26 (28 steps), Hunyuan .05-.13, Wan2.1 .04-.19",
    "newest weight": "FLUX.1-dev 1.0-1.4",
    "half the steps": "FLUX.1-dev 15.6 dB",
    "TaylorSeer": "FLUX.1-dev 22.8 dB at 2.1x",
    "MagCache": "FLUX.1-dev .015, Qwen-Image .048, Wan2.1 .013 in the middle",
}


def taylorseer_at(speed: float, steps: int) -> str:
    """TaylorSeer's config whose computed steps are nearest to the share `1 / speed`."""
    best, found = float("inf"), ""
    for interval in range(2, 6):
        for warmup in range(1, max(2, steps // 2)):
            computed = warmup + max(0, steps - warmup) // interval
            distance = abs(computed / steps - 1 / speed)
            if distance < best - 1e-9:
                best, found = distance, f"taylorseer:interval={interval},order=1,warmup={warmup}"
    return found


def _mean(values: list[float]) -> float | None:
    return statistics.mean(values) if values else None


class Bench:
    """Measures one pipeline.

    Args:
        subject: the pipeline and its calls, one generation each.
        steps: of the dense runs.
    """

    def __init__(self, subject: Subject, steps: int) -> None:
        self.pipe, self.calls, self.steps = subject.pipe, subject.calls, steps
        transformers, self.adapter = transformers_of(subject.pipe)
        self.transformers = list(transformers.values())

    def _run(self, i: int, steps: int | None = None) -> np.ndarray:
        """Frames uint8 (F, H, W, 3) of one generation, its noise drawn with its number."""
        asked = {**decoded(self.pipe), **self.calls[i]}
        asked["num_inference_steps"] = steps or self.steps
        with calls_of(self.pipe, "bench"):
            output = self.pipe(**asked, generator=torch.Generator("cpu").manual_seed(i))
        return to_uint8(pictures_of(self.pipe, output))

    def _psnrs(self, dense: list[np.ndarray], steps: int | None = None) -> list[float]:
        return [psnr(frames, self._run(i, steps)) for i, frames in enumerate(dense)]

    def dense(self) -> tuple[list[np.ndarray], dict[str, Any]]:
        """The dense runs and what they show."""
        trajectory, ratios, dense = Trajectory(), [], []
        for i in range(len(self.calls)):
            _say(f"dense run {i + 1} of {len(self.calls)}")
            trajectory.begin()
            residuals = Residuals(trajectory)
            with ExitStack() as stack:
                stack.enter_context(watched(self.pipe.scheduler, trajectory))
                for transformer in self.transformers:
                    stack.enter_context(residuals.watching(transformer, self.adapter))
                dense.append(self._run(i))
            ratios.append(residuals.ratios())
        found: dict[str, Any] = {"steps": trajectory.steps}
        found["change"] = {name: trajectory.change(*part) for name, part in PARTS.items()}
        found["weights"] = {name: trajectory.weights(*part) for name, part in PARTS.items()}
        middle = [abs(1 - r) for run in ratios for r in run[len(run) // 5 : len(run) * 9 // 10]]
        per_step = [_mean(list(step)) for step in zip(*ratios, strict=False)]
        found["magcache"] = {"middle": _mean(middle), "ratios": per_step}
        random = all(as_initialised(t) for t in self.transformers)
        found["random"] = random or max(trajectory.likeness, default=1.0) < 0.1
        return dense, found

    def accelerated(self, dense: list[np.ndarray]) -> dict[str, Any]:
        """PSNR of half the steps and of TaylorSeer, in dB to the dense runs."""
        _say("half the steps")
        found: dict[str, Any] = {"half_steps": self._psnrs(dense, self.steps // 2)}
        spec = taylorseer_at(SPEED, self.steps)
        _say(spec)
        values, shares = [], []
        for i, frames in enumerate(dense):
            with api.accelerated(self.pipe, spec):
                values.append(psnr(frames, self._run(i)))
                shares.append(api.report(self.pipe).computed_share)
        found["taylorseer"] = {"spec": spec, "psnr": values, "speed": len(shares) / sum(shares)}
        return found

    def attention(self, mass: float, tiles: tuple[int, int], every: int) -> list[dict[str, Any]]:
        """Density and overlap per layer and head, of the first prompt's run."""
        _say("attention")
        watcher = AttentionWatcher(mass, tiles, every)
        with observed(self.pipe, watcher):
            self._run(0)
        return watcher.heads()

    def noise_floor(self, dense: list[np.ndarray]) -> dict[str, Any]:
        """PSNR of another precision of the transformers alone; leaves half precision widened."""
        _say("another precision")
        dtype = next(self.transformers[0].parameters()).dtype
        with other_precision(self.transformers, dtype) as other:
            values = self._psnrs(dense)
        return {"dtype": str(other).removeprefix("torch."), "psnr": values}


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def _decibels(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} dB (least {min(values):.1f})"


def table(found: dict[str, Any]) -> str:
    """The figures as lines, published ones of real models beside them."""
    change, weights, magcache = found["change"], found["weights"], found["magcache"]
    parts = " / ".join(PARTS)
    newest = " / ".join(_number(w[0] if w else None, ".2f") for w in weights.values())
    older = " / ".join(_number(w[1] if w else None, ".2f") for w in weights.values())
    taylor = found["taylorseer"]
    rows = [
        (f"change from step to step ({parts})", " / ".join(map(_number, change.values()))),
        (f"newest weight of the next output ({parts})", newest),
        ("weight of the one before it", older),
        ("MagCache ratio, mean distance from 1, middle", _number(magcache["middle"], ".4f")),
        ("half the steps", _decibels(found["half_steps"])),
        (f"TaylorSeer at {taylor['speed']:.2f}x", _decibels(taylor["psnr"])),
    ]
    if floor := found.get("noise_floor"):
        rows.append((f"{floor['dtype']} alone", _decibels(floor["psnr"])))
    if heads := found.get("attention"):
        densities = [h["density"] for h in heads]
        overlaps = [h["overlap"] for h in heads if h["overlap"] is not None]
        name = f"tiles for {100 * found['mass']:.0f} % of the mass (median, least, most of heads)"
        spread = (statistics.median(densities), min(densities), max(densities))
        rows.append((name, " / ".join(f"{100 * d:.0f} %" for d in spread)))
        kept = f"{100 * statistics.median(overlaps):.0f} %" if overlaps else "-"
        rows.append(("of those tiles, still right a step later (median)", kept))
    lines = [f"{found['model']}: {found['prompts']} prompts, {found['steps']} steps"]
    for name, value in rows:
        beside = next((text for key, text in PUBLISHED.items() if name.startswith(key)), "")
        lines.append(f"  {name:<66}{value:<26}{beside}".rstrip())
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command line."""
    add_model(parser, limit=4)
    add_steps(parser, 6)
    add = parser.add_argument
    mass = number("--mass", 0, 1, open_ends=True)
    add("--mass", type=mass, default=0.9, help="share of the softmax, for attention (default 0.9)")
    add("--q-tile", type=whole("--q-tile", 1), default=128, metavar="N")
    add("--k-tile", type=whole("--k-tile", 1), default=64, metavar="N")
    add("--every", type=whole("--every", 1), default=8, metavar="N", help="look at every n-th step")
    add("--quick", action="store_true", help="leave out attention and precision")
    add_out(parser, "JSON file to write, with every figure per step", "FILE", needed=False)


@torch.no_grad()
def run(args: argparse.Namespace) -> int:
    """Measure a model; prints a table."""
    subject = open_subject(args, args.limit, num_inference_steps=args.steps)
    subject.pipe.set_progress_bar_config(disable=True)
    steps = int(subject.calls[0].get("num_inference_steps") or 50)
    if steps < 6:
        raise UsageError(f"{steps}: six or more are needed for a middle of the run", "steps")
    bench = Bench(subject, steps)
    dense, found = bench.dense()
    found |= {"model": subject.name, "prompts": len(dense), "mass": args.mass}
    found |= bench.accelerated(dense)
    if not args.quick:
        try:
            found["attention"] = bench.attention(args.mass, (args.q_tile, args.k_tile), args.every)
        except DitaccelError as error:
            found["attention"] = []
            _say(f"no figures of attention: {error}")
        found["noise_floor"] = bench.noise_floor(dense)
    print(table(found))
    if found["random"]:
        print(RANDOM)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0
