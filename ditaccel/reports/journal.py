"""Journal: what a session writes down while a pipeline runs; `Report` is a look at it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

from ..attention.engine.records import AttentionLog
from ..calls.engine.method import CallLog
from ..core.stopwatch import Stopwatch
from .data import CallRecord
from .drift import Watched
from .report import Report
from .step_choice import StepChoice

# A batch job makes thousands of generations: calls beyond this are only counted.
MAX_CALLS = 20_000
# Times that are not yet read from the device, at most.
_UNREAD = 2_000


@dataclass(eq=False)
class Journal:
    """Everything that happened since `accelerate`; see `Report` for what the fields hold."""

    family: str
    method: str
    config: dict[str, Any]
    filled: dict[str, Any] = field(default_factory=dict)
    calls: list[CallRecord] = field(default_factory=list)
    total_calls: int = 0
    forecasts: int = 0
    share_sum: float = 0.0
    memory: dict[str, int] = field(default_factory=dict)
    tensors_per_branch: int = 0
    tensors: str = "hidden states"
    modules: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    correction: str = ""
    left: float | None = None
    refused: str = ""
    warnings: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    step_choice: StepChoice | None = None
    watched: Watched | None = None
    attention: list[AttentionLog] = field(default_factory=list)
    call_logs: list[CallLog] = field(default_factory=list)
    _watches: dict[int, Stopwatch] = field(default_factory=dict)

    def add(self, record: CallRecord) -> None:
        """Book one call."""
        self.calls.append(record)
        self.refused = ""
        self.total_calls += 1
        self.forecasts += record.action == "forecast"
        self.share_sum += record.share
        if len(self.calls) > MAX_CALLS:
            self._read_watches()
            del self.calls[: MAX_CALLS // 2]

    def time(self, watch: Stopwatch) -> None:
        """End the time of the call that was booked last, if one was since the watch began."""
        if not watch.exact or not self.calls:
            return
        watch.lap()
        self._watches[self.total_calls - 1] = watch
        if len(self._watches) > _UNREAD:
            self._read_watches()

    def _read_watches(self) -> None:
        """Put the times of calls into their records; waits for the device."""
        first = self.total_calls - len(self.calls)
        for number, watch in self._watches.items():
            (seconds,) = watch.seconds()
            self.calls[number - first] = replace(self.calls[number - first], seconds=seconds)
        self._watches.clear()

    def assume(self, line: str) -> None:
        """Book what was taken for granted, once."""
        if line not in self.assumed:
            self.assumed.append(line)

    def note(self, line: str) -> None:
        """Book what a reader of the report may want to know, once."""
        if line not in self.notes:
            self.notes.append(line)

    def report(self) -> Report:
        """What was written so far, as a value that does not change any more."""
        self._read_watches()
        return Report(
            family=self.family,
            method=self.method,
            config=copy.deepcopy(self.config),
            filled=copy.deepcopy(self.filled),
            calls=tuple(self.calls),
            total_calls=self.total_calls,
            forecasts=self.forecasts,
            share_sum=self.share_sum,
            memory=dict(self.memory),
            tensors_per_branch=self.tensors_per_branch,
            tensors=self.tensors,
            modules={
                f"{component}.{name}": ran / seen
                for component, modules in self.modules.items()
                for name, (seen, ran) in modules.items()
            },
            correction=self.correction,
            left=self.left,
            refused=self.refused,
            warnings=tuple(self.warnings),
            assumed=tuple(self.assumed),
            notes=tuple(self.notes),
            step_choice=self.step_choice,
            errors={} if self.watched is None else self.watched.numbers(),
            latents=() if self.watched is None else self.watched.latents,
            loop_steps=None if self.watched is None else self.watched.steps,
            attention=tuple(log.copy() for log in self.attention),
            call_logs=tuple(copy.copy(log) for log in self.call_logs),
        )
