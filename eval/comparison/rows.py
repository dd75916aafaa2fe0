"""One row of the comparison at work: switch it on, generate once, switch it off."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ditaccel.pipelines import FamilyAdapter

from ditaccel import api
from ditaccel.errors import DitaccelError, UnsupportedError
from ditaccel.io.models import execution_device

from ..measure.counting import Tally, counted
from ..measure.memory import DevicePeak
from ..measure.timing import Timing
from ..peers.base import Situation, peer_options, prepare, with_peer
from ..specs import Role, RunConfig
from .sampler import Generation, Sample, Sampler

# Far from any seed a user picks, and the same for all: only the scale of "another picture".
OTHER_SEED_SHIFT = 1_000_003
_CALIBRATION_SEED = 2_000_003
_WHOLE = 0.999


class RowError(DitaccelError):
    """A generation raised: the row's sample is lost, the run continues."""


@dataclass(frozen=True)
class Outcome:
    """One generation and what it took.

    Attributes:
        generation: frames and seconds.
        tally: what ran, counted from outside.
        calls: (step, branch, action, reason, error) per transformer call.
        reported_share: the method's own account of its computed share, None where it gives none.
        peak: peak device memory, None on a CPU.
        least_share: see `Tally.least_share`; None where it bounds nothing.
    """

    generation: Generation
    tally: Tally
    calls: list[list[Any]]
    reported_share: float | None
    peak: int | None
    least_share: float | None = None

    @property
    def timing(self) -> Timing:
        """What the generation took."""
        return replace(self.generation.timing, denoiser=self.tally.denoiser_seconds)


class Rows:
    """Runs the rows of one comparison on one pipeline.

    Args:
        sampler: calls the pipeline.
        family: for presets.
    """

    def __init__(self, sampler: Sampler, family: str | FamilyAdapter) -> None:
        self._sampler, self._family = sampler, family
        self._prepared: dict[tuple[Any, ...], Any] = {}
        self._full: dict[str, float] = {}
        self._dense: Tally | None = None
        self._branches = 1

    def validate(self, row: RunConfig) -> None:
        """Check a row's names and options before anything runs.

        Raises:
            ConfigError: unknown preset, method, peer or option, or an unreadable file.
        """
        if row.role is Role.PEER:
            peer_options(str(row.work.peer), row.work.options)
        elif row.work.cache is not None:
            self._config(row)

    def told(self, configs: Sequence[RunConfig]) -> list[RunConfig]:
        """The rows, each told whether it saves what counted layers do not show."""
        return [replace(row, sparse=self._is_sparse(row)) for row in configs]

    def _is_sparse(self, row: RunConfig) -> bool:
        if row.work.cache is None:
            return False
        config = self._config(row)
        return any(method.kind != "cache" for method in getattr(config, "methods", ()))

    def _config(self, row: RunConfig) -> Any:
        from ditaccel import config

        return config.resolve(str(row.work.cache), self._family)

    def learn_dense(self, tally: Tally, steps: int) -> None:
        """Take the dense run's block work per call, and its calls per step, as the measure."""
        for call in tally.calls:
            self._full[call.transformer] = max(call.work, self._full.get(call.transformer, 0.0))
        self._branches = max(1, round(len(tally.calls) / steps))
        self._dense = tally

    def _situation(self, row: RunConfig, sample: Sample) -> Situation:
        steps = row.work.steps or self._sampler.steps

        def calibrate(pipe: Any) -> None:
            self._sampler.generate(pipe, sample.prompt, _CALIBRATION_SEED, steps)

        return Situation(steps, self._branches, calibrate)

    @contextmanager
    def _active(self, row: RunConfig, sample: Sample) -> Iterator[tuple[Any, Callable[[], Any]]]:
        """The pipeline with the row's method on it, and a way to the method's own report."""
        pipe = self._sampler.pipe
        if row.role is Role.PEER:
            name = str(row.work.peer)
            options, situation = peer_options(name, row.work.options), self._situation(row, sample)
            key = (name, situation.steps)
            if key not in self._prepared:
                self._prepared[key] = prepare(name, pipe, options, situation)
            with with_peer(name, pipe, options, situation, self._prepared[key]) as twin:
                yield twin, lambda: None
        elif row.work.cache is not None:
            with api.accelerated(pipe, self._config(row)):
                yield pipe, lambda: api.report(pipe).last_generation()
        else:
            yield pipe, lambda: None

    def run(
        self, row: RunConfig, sample: Sample, between: Callable[[int], None] | None = None
    ) -> Outcome:
        """Generate one sample with one row.

        Args:
            row: what to switch on.
            sample: prompt and seed.
            between: see `counting.counted`.

        Raises:
            UnsupportedError: the row cannot run on this pipeline, with the reason.
            RowError: the generation failed, with the reason.
        """
        seed = sample.seed + (OTHER_SEED_SHIFT if row.role is Role.OTHER_SEED else 0)
        try:
            with warnings.catch_warnings():
                if between is None:
                    # The warm-up has shown them once.
                    warnings.simplefilter("ignore")
                with self._active(row, sample) as (pipe, report):
                    peak = DevicePeak(execution_device(pipe))
                    with counted(pipe, between) as tally:
                        steps = row.work.steps
                        generation = self._sampler.generate(pipe, sample.prompt, seed, steps)
                    own = report()
        except UnsupportedError:
            raise
        except DitaccelError as error:
            raise RowError(str(error)) from error
        except Exception as error:
            line = (str(error).strip() or "no message").split("\n")[0][:300]
            raise RowError(f"{type(error).__name__}: {line}") from error
        if row.role is Role.DENSE and not self._full:
            self.learn_dense(tally, self._sampler.steps)
        share = None if own is None else float(own.computed_share)
        least = None
        if self._dense is not None and not row.sparse:
            least = tally.least_share(self._dense)
        calls = self._calls(tally, own)
        return Outcome(generation, tally, calls, share, peak.read(), least)

    def _calls(self, tally: Tally, own: Any) -> list[list[Any]]:
        if own is not None:
            return [[c.step, c.branch, c.action, c.reason, c.error] for c in own.calls]
        rows: list[list[Any]] = []
        for step, branch, call in tally.timeline():
            full = self._full.get(call.transformer, 0.0)
            part = call.work / full if full else 1.0
            action = "compute" if part >= _WHOLE else "forecast"
            rows.append([step, f"call{branch}", action, f"{part:.0%} of the block work", None])
        return rows
