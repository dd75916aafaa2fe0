"""Every row on every sample: warmed up, made in turns, judged, and kept line by line."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ditaccel.errors import UnsupportedError, UsageError
from ditaccel.io.progress import Progress, duration

from .. import store
from ..judge import Judge
from ..measure.ceilings import CountedFlops
from ..measure.memory import KeptTensors
from ..measure.timing import Timing
from ..records import WARMUP, read_all
from ..specs import Role, RunConfig
from ..store import Store
from . import plan
from .rows import Outcome, RowError, Rows
from .sampler import Sample
from .turns import Turns, in_turn


class Comparison:
    """One comparison in progress.

    Args:
        store: the folder of the run.
        rows: runs the rows.
        configs: what is compared, dense first.
        samples: prompts and seeds.
        judge: compares pictures with dense's.
        progress: what the user sees.
        stamp: versions, commit and device, which every line carries.
        pairs: samples that are timed.
        workers: that share the samples.

    Attributes:
        unavailable: peers that cannot run on this pipeline, each with the reason.
    """

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
        workers: int = 1,
    ) -> None:
        self.store, self.rows, self.configs, self.samples = store, rows, configs, samples
        self.judge, self.progress, self.stamp = judge, progress, stamp
        self.pairs, self.workers = pairs, workers
        self.unavailable: dict[str, str] = {}
        self._warm: dict[str, float] = {}
        self._first: Sample | None = None  # of those that this process made
        self.turns = Turns(rows.run, self._dense_so_far())

    def _dense_so_far(self) -> list[Timing]:
        """Dense runs that an earlier part of this comparison timed on such a device."""
        device = self.stamp["device"]["name"]
        known = self.store.generations.values()
        lines = [line for line in known if line.get("device", {}).get("name") == device]
        own = [line["timing"] for line in lines if line["config"] == self.configs[0].id]
        twins = [pair["dense"] for line in lines for pair in line["pairs"]]
        return [Timing.from_dict(timing) for timing in (*own, *twins)]

    def complete(
        self, size: str | None, turns: Iterable[tuple[int, Sample]] | None = None
    ) -> bool | None:
        """Make and judge what is left of the comparison.

        Args:
            size: the line that says how much is to be made; None where all is made already.
            turns: number and sample of what this process makes; None for all samples.

        Returns:
            Whether dense came out the same next to every row and after them; None where nothing
            was made, or dense has no result to compare with.
        """
        if size is None:
            self.measure(turns)
            return None
        self.progress.note(size)
        self.warm_up()
        self.measure(turns)
        return self.verify_dense()

    def _left(self, row: RunConfig) -> list[int]:
        """Places of the samples that a row has still to make."""
        return [i for i, s in enumerate(self.samples) if not self.store.is_done(row.id, s.id)]

    def warm_up(self) -> None:
        """One generation per row, not timed: first calls are slow, and memory is looked at."""
        dense = self.configs[0]
        pending = [row for row in self.configs if row is dense or self._left(row)]
        zero = 0
        for row in pending:
            kept = KeptTensors()
            try:
                # Of dense alone: a kernel that is compiled in its first call does not see a mode.
                with CountedFlops() if row is dense else nullcontext() as flops:
                    outcome = self.rows.run(row, self.samples[0], kept)
            except UnsupportedError as error:
                if row.role is not Role.PEER:
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
            if flops is not None:
                line |= {"flops": flops.total, "attention_flops": flops.attention}
                line["work"] = outcome.tally.work
            self.store.append(store.WARMUPS, line)
            self.progress.note(f"{row.label}: warmed up in {duration(seconds)}")
            if row is dense:
                self.progress.note(f"were all rows as slow: {plan.time_line(self._seconds_left())}")
        self.configs = [row for row in self.configs if row.id not in self.unavailable]
        self.progress.note(plan.time_line(self._seconds_left()))

    def give_up(self, sample: Sample, reason: str) -> None:
        """Let a sample fail in all rows that have not made it."""
        for row in self.configs:
            if not self.store.is_done(row.id, sample.id):
                self._fail(row, sample, reason)

    def _seconds_left(self) -> float:
        """An estimate of what is left, by the warm-ups so far."""
        left, timed = {}, {}
        for row in self.configs:
            places = self._left(row)
            left[row.id] = len(places)
            timed[row.id] = sum(i < self.pairs for i in places) if row.role is not Role.DENSE else 0
        return plan.seconds_left(self._warm, left, self.configs[0].id, timed) / self.workers

    def measure(self, turns: Iterable[tuple[int, Sample]] | None = None) -> None:
        """Make samples with every row, and judge them, as far as they are not there.

        Args:
            turns: number and sample of each; None for all.
        """
        kept = {w["config"]: w["kept_bytes"] for w in read_all(self._path(store.WARMUPS), WARMUP)}
        self.progress.begin()
        for turn, sample in enumerate(self.samples) if turns is None else turns:
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
        """One generation, paired with dense where the sample is timed; its pairs as plain data."""
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
        self._first = self._first or sample
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
        """Whether dense comes out the same next to every row, and once all rows have run."""
        dense, sample = self.configs[0], self._first
        if self.turns.dense_changed:
            return False
        if sample is None or not self.store.is_done(dense.id, sample.id):
            return None
        again = self.rows.run(dense, sample).generation.frames
        return bool(np.array_equal(again, self.store.frames(dense.id, sample.id)))
