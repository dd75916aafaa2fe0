"""Paired runs: every row on every sample, same seed and noise, in turns, resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditaccel.core.patching import is_compiled, unwrapped
from ditaccel.errors import UnsupportedError, UsageError
from ditaccel.io import given, provenance
from ditaccel.io.arguments import AUTO, SHORT_DTYPES
from ditaccel.io.asking import default_call
from ditaccel.io.factory import Opened, read_factory
from ditaccel.io.models import Sheet, read_sheet
from ditaccel.io.opening import open_pipeline
from ditaccel.io.progress import Progress, duration

from . import plan, specs, store
from .judge import Judge
from .measure.memory import CPU_MEANING, CUDA_MEANING, KeptTensors
from .measure.timing import Timing
from .measure.turns import Turns, in_turn
from .peers.base import PEERS
from .records import SCHEMA, WARMUP, read_all
from .rows import Outcome, RowError, Rows
from .sampler import Sample, Sampler, make_samples
from .specs import DENSE, PEER, RunConfig
from .store import Store


@dataclass(frozen=True)
class Options:
    """How to run a comparison.

    Attributes:
        steps: scheduler steps of the dense run; None takes `sample.json`'s, else 50.
        fewer: step counts of the fewer-steps rows; None takes shares of `steps`.
        call: arguments of the pipeline call that override `sample.json`'s.
        features: extractor for FID and the judge (see `metrics.extractors`); None takes
            `sample.json`'s, "none" switches both off.
        real: folder or npz of real frames for FID to real data.
        real_n: how many of them, None for all.
        lpips_weights: AlexNet weights for LPIPS.
        device: torch device; `auto` is a GPU where there is one.
        dtype: `float32`, `float16` or `bfloat16`; None takes float32 on a CPU, else the model's.
        pipeline: `module:function` or `file.py:function` that makes the pipeline of a model (see
            `ditaccel.io.factory.Factory`); None loads the model's own.
        threads: CPU threads, None leaves torch's setting.
        pairs: samples that are timed: each row has a dense run of its own beside it there, which
            about doubles what they cost. Quality is measured on all samples.
        quiet: no progress.
    """

    steps: int | None = None
    fewer: Sequence[int] | None = None
    call: dict[str, Any] | None = None
    features: str | None = None
    real: str | None = None
    real_n: int | None = None
    lpips_weights: str | None = None
    device: str = AUTO
    dtype: str | None = None
    pipeline: str | None = None
    threads: int | None = None
    pairs: int = 8
    quiet: bool = False


def _model_name(model: str | Path) -> str:
    """A folder as seen from the working directory, else its name: results may be published."""
    folder = given.path(model)
    if not folder.exists():
        return str(model)
    try:
        return str(folder.resolve().relative_to(Path.cwd()))
    except ValueError:
        return folder.resolve().name


def _describe(value: Any) -> Any:
    """An argument of the call as `run.json` keeps it: the same text for the same content."""
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [_describe(part) for part in value]
    if isinstance(value, dict):
        return {str(key): _describe(part) for key, part in value.items()}
    if isinstance(value, torch.Tensor):
        return f"tensor{tuple(value.shape)}"
    array = np.asarray(value) if hasattr(value, "__array_interface__") else None
    if array is None or array.dtype == object:
        return type(value).__name__  # its text may hold an address
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
    return f"{type(value).__name__}{array.shape} {digest}"


class _Run:
    """One comparison in progress."""

    def __init__(
        self,
        store: Store,
        rows: Rows,
        configs: list[RunConfig],
        samples: list[Sample],
        judge: Judge,
        progress: Progress,
        stamp: dict[str, Any],
        pairs: int,
    ) -> None:
        self.store, self.rows, self.configs, self.samples = store, rows, configs, samples
        self.judge, self.progress, self.stamp = judge, progress, stamp
        self.unavailable: dict[str, str] = {}
        self._warm: dict[str, float] = {}
        self.pairs = pairs
        self.turns = Turns(rows.run, self._dense_so_far())

    def _dense_so_far(self) -> list[Timing]:
        """Dense runs that an earlier part of this comparison timed."""
        lines = self.store.generations.values()
        own = [line["timing"] for line in lines if line["config"] == self.configs[0].id]
        twins = [pair["dense"] for line in lines for pair in line["pairs"]]
        return [Timing.from_dict(timing) for timing in (*own, *twins)]

    def warm_up(self) -> None:
        """One generation per row, not timed: first calls are slow, and memory is looked at."""
        dense = self.configs[0]
        pending = [
            row
            for row in self.configs
            if row.role == DENSE or any(not self.store.is_done(row.id, s.id) for s in self.samples)
        ]
        zero = 0
        for row in pending:
            kept = KeptTensors()
            try:
                outcome = self.rows.run(row, self.samples[0], kept)
            except UnsupportedError as error:
                if row.role != PEER:
                    raise
                self.unavailable[row.id] = str(error)
                self.progress.note(f"{row.label}: not available: {error}")
                continue
            except RowError as error:
                if row is dense:
                    raise UsageError(
                        f"the dense run fails, so nothing can be compared with it: {error}"
                    ) from error
                self.progress.note(f"{row.label}: the warm-up failed: {error}")
                continue
            if row is dense:
                zero = kept.peak
            seconds = outcome.generation.seconds - kept.seconds
            self._warm[row.id] = seconds
            line = {"config": row.id, "seconds": seconds, "kept_bytes": max(0, kept.peak - zero)}
            self.store.append(store.WARMUPS, line)
            self.progress.note(f"{row.label}: warmed up in {duration(seconds)}")
            if row is dense:
                self.progress.note(f"were all rows as slow: {plan.time_line(self._seconds_left())}")
        self.configs = [row for row in self.configs if row.id not in self.unavailable]
        self.progress.note(plan.time_line(self._seconds_left()))

    def _seconds_left(self) -> float:
        """What is left takes about so long, by the warm-ups so far."""
        left, timed = {}, {}
        for row in self.configs:
            places = [i for i, s in enumerate(self.samples) if not self.store.is_done(row.id, s.id)]
            left[row.id] = len(places)
            timed[row.id] = sum(i < self.pairs for i in places) if row.role != DENSE else 0
        return plan.seconds_left(self._warm, left, self.configs[0].id, timed)

    def measure(self) -> None:
        """Every sample with every row."""
        kept = {w["config"]: w["kept_bytes"] for w in read_all(self._path(store.WARMUPS), WARMUP)}
        self.progress.begin()
        for turn, sample in enumerate(self.samples):
            for row in in_turn(self.configs, turn):
                if not self.store.is_done(row.id, sample.id):
                    self._generate(row, sample, kept.get(row.id, 0), turn)
                    self.progress.step(row.label)
                self._judge(sample)

    def _path(self, name: str) -> Path:
        return self.store.folder / name

    def _fail(self, row: RunConfig, sample: Sample, reason: str) -> None:
        self.store.append(
            store.FAILURES, {"config": row.id, "sample": sample.id, "error": reason, **self.stamp}
        )
        self.progress.note(f"{row.label}, {sample.id}: failed: {reason}")

    def _take(self, row: RunConfig, sample: Sample, turn: int) -> tuple[Outcome, list[Any]]:
        """One generation, beside dense where the sample is timed; with its pairs as plain data."""
        dense = self.configs[0]
        if row is dense:
            outcome = self.rows.run(row, sample)
            self.turns.dense_runs.append(outcome.timing)
            return outcome, []
        if turn >= self.pairs or not self.store.is_done(dense.id, sample.id):
            return self.rows.run(row, sample), []
        reference = self.store.frames(dense.id, sample.id)
        outcome, pairs = self.turns.timed(dense, row, sample, reference, turn)
        return outcome, [pair.to_dict() for pair in pairs]

    def _generate(self, row: RunConfig, sample: Sample, kept: int, turn: int) -> None:
        try:
            outcome, pairs = self._take(row, sample, turn)
        except (RowError, UnsupportedError) as error:
            self._fail(row, sample, str(error))
            return
        tally = outcome.tally
        self.store.add_generation(
            {
                "config": row.id,
                "sample": sample.id,
                "seconds": outcome.generation.seconds,
                "timing": outcome.timing.to_dict(),
                "pairs": pairs,
                "denoise_seconds": tally.denoise_seconds,
                "work": tally.work,
                "least_share": outcome.least_share,
                "reported_share": outcome.reported_share,
                "calls": outcome.calls,
                "peak_memory_bytes": kept if outcome.peak is None else outcome.peak,
                "media": f"media/{row.id}/{sample.id}.npz",
                **self.stamp,
            },
            outcome.generation.frames,
        )

    def _judge(self, sample: Sample) -> None:
        """Compare what there is of a sample with its dense run, as soon as that is there."""
        dense_id = self.configs[0].id
        dense = self.store.generations.get((dense_id, sample.id))
        if dense is None:
            return
        reference: np.ndarray | None = None
        for row in self.configs:
            key = (row.id, sample.id)
            line = self.store.generations.get(key)
            if line is None or key in self.store.results:
                continue
            if reference is None:
                reference = self.store.frames(dense_id, sample.id)
            metrics = self.judge.judge(sample, reference, self.store.frames(*key))
            share = line["work"] / dense["work"] if dense["work"] else 1.0
            self.store.add_result(
                {
                    "config": row.id,
                    "sample": sample.id,
                    "prompt": sample.prompt,
                    "seed": sample.seed,
                    "metrics": metrics,
                    "computed_share": share,
                    "finite": True,
                    **{k: v for k, v in line.items() if k not in ("config", "sample", "work")},
                }
            )

    def verify_dense(self) -> bool | None:
        """Whether dense comes out the same beside every row, and once all rows have run."""
        dense, sample = self.configs[0], self.samples[0]
        if self.turns.dense_changed:
            return False
        if not self.store.is_done(dense.id, sample.id):
            return None
        again = self.rows.run(dense, sample).generation.frames
        return bool(np.array_equal(again, self.store.frames(dense.id, sample.id)))


def _setup(
    model: str,
    pipe: Any,
    sheet: Sheet,
    sampler: Sampler,
    configs: list[RunConfig],
    rows: Rows,
    prompts: list[str],
    seeds: list[int],
    judge: Judge,
    dtype: str,
) -> dict[str, Any]:
    device = provenance.device_of(pipe)
    call = {k: _describe(v) for k, v in sampler.call.items()}
    return {
        "schema": SCHEMA,
        "model": _model_name(model),
        "fingerprint": provenance.fingerprint(model),
        "family": sheet.family or provenance.family_of(pipe),
        "task": sheet.task,
        "call": {**call, "num_inference_steps": sampler.steps},
        "configs": [{**row.to_dict(), "sparse": rows.is_sparse(row)} for row in configs],
        "prompts": prompts,
        "seeds": seeds,
        "device": device,
        "dtype": dtype,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "command": provenance.command(),
        "peers": {row.peer: PEERS[row.peer].note for row in configs if row.peer is not None},
        "fps": sheet.fps,
        "features": judge.features,
        "memory": CUDA_MEANING if device["type"] == "cuda" else CPU_MEANING,
    }


def _refuse_compiled(pipe: Any) -> None:
    """Say what would end in a failure of the compiler, or in blocks that run uncompiled.

    Raises:
        UnsupportedError: a transformer of the pipeline is compiled, whole or block by block.
    """
    for name, part in getattr(pipe, "components", {}).items():
        if not isinstance(part, torch.nn.Module) or not name.startswith("transformer"):
            continue
        if unwrapped(part) is not part or any(is_compiled(module) for module in part.modules()):
            raise UnsupportedError(
                f"{name} is compiled, and eval counts what runs inside of its blocks, which a "
                "compiled graph does not show; measure the pipeline before it is compiled"
            )


def evaluate(
    model: str | Path | Any,
    configs: str | Sequence[str],
    prompts: str | Sequence[str],
    seeds: int | Iterable[int],
    out: str | Path,
    options: Options | None = None,
    on_setup: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Compare configs with dense runs of one model, and write the results to a folder.

    Repeating the call on the same folder goes on where an earlier one was killed.

    Args:
        model: folder or Hub id of a diffusers pipeline, or a loaded pipeline.
        configs: a text as in `specs.FORMS`, or several.
        prompts: a prompt or class name, or several.
        seeds: of the noise, one or several; each prompt is made with each.
        out: folder of the run.
        options: how to run.
        on_setup: called with the content of `run.json` before anything is generated.

    Returns:
        The folder; it holds `run.json`, `results.jsonl`, `summary.json` and `media/`.

    Raises:
        ConfigError: an unusable config text.
        UnsupportedError: a method of this plugin cannot run on the model.
        UsageError: an unusable model, prompt, folder or weights file.
    """
    options = options or Options()
    configs, prompts = (
        [given] if isinstance(given, str) else list(given) for given in (configs, prompts)
    )
    seeds = [seeds] if isinstance(seeds, int) else seeds
    seeds = list(dict.fromkeys(int(seed) for seed in seeds))
    if not prompts or not seeds:
        raise UsageError("nothing to generate: give at least one prompt and one seed")
    if options.dtype is not None and options.dtype not in SHORT_DTYPES:
        raise UsageError(f"dtype {options.dtype!r} is not one of {', '.join(SHORT_DTYPES)}")
    if options.pairs < 1:
        raise UsageError(f"pairs must be >= 1, got {options.pairs}: speed is measured in pairs")
    if options.threads is not None:
        if options.threads < 1:
            raise UsageError(f"threads must be >= 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    folder = model if isinstance(model, (str, Path)) else None
    sheet = read_sheet(folder) if folder is not None else Sheet()
    factory = read_factory(options.pipeline) if options.pipeline else None
    if folder is None:
        opened, name = Opened(model), type(model).__name__
    else:
        opened, name = open_pipeline(folder, options.device, options.dtype, factory), str(folder)
    pipe = opened.pipe
    _refuse_compiled(pipe)
    call = default_call(pipe, sheet, options.call, opened.call)
    steps = int(options.steps or call.get("num_inference_steps") or 50)
    if steps < 2:
        raise UsageError(f"{steps} dense step(s): caching needs at least 2")
    sampler = Sampler(pipe, call, steps)
    for prompt in prompts:
        sampler.subject(prompt)
    rows = Rows(sampler, sheet.family or provenance.family_of(pipe))
    chosen = specs.build(configs, steps, options.fewer, rows.validate)
    judge = Judge(options, sheet, pipe if sampler.by_class else None)
    setup = _setup(name, pipe, sheet, sampler, chosen, rows, prompts, seeds, judge, opened.dtype)
    setup["pairs"] = options.pairs
    if factory is not None:
        setup["pipeline"] = factory.identity
    samples = make_samples(prompts, seeds)
    with Store(out, setup) as place:
        if on_setup is not None:
            on_setup(setup)
        total = len(chosen) * len(samples)
        done = sum(place.is_done(row.id, s.id) for row in chosen for s in samples)
        progress = Progress(total, done, options.quiet)
        stamp = {key: setup[key] for key in ("versions", "commit", "device")}
        run = _Run(place, rows, chosen, samples, judge, progress, stamp, options.pairs)
        try:
            repeat = None
            if done < total:
                made = "clips" if "video" in sheet.task else "pictures"
                size = (len(prompts), len(seeds), len(chosen), total - done)
                progress.note(plan.size_line(*size, made))
                run.warm_up()
                run.measure()
                repeat = run.verify_dense()
            else:
                run.measure()
        finally:
            progress.close()
        from .summary import write_summary

        write_summary(place.folder, judge, run.unavailable, repeat)
        return place.folder
