"""What one pipeline call took, on clocks that other work does and does not stretch."""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

# A run that stood in the run queue for more than this share of its time met a busy moment.
BUSY = 0.05
# Two clocks further apart than this do not tell of the same thing.
APART = 0.15
# Process time above this many times wall-clock: several threads share the work.
_PARALLEL = 1.1
_TASKS = Path("/proc/self/task")


def wait_for(device: torch.device) -> None:
    """Wait until a CUDA device has done all it was given; elsewhere calls return when done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def apart(a: float, b: float) -> bool:
    """Whether two positive figures differ by more than `APART`."""
    return abs(math.log(a / b)) > math.log(1 + APART)


@dataclass(frozen=True)
class Timing:
    """Seconds of one pipeline call.

    Attributes:
        seconds: wall-clock, to the end of the device's work.
        process: processor time of this process, all threads; None where the work is elsewhere.
        device: between two events of a CUDA device's stream; None elsewhere.
        wait: time in the run queue, of the thread that waited longest: the processor had other
            work. None where the system does not say (it is Linux's `schedstat`).
        denoiser: wall-clock inside transformer calls, None where none was seen.
    """

    seconds: float
    process: float | None = None
    device: float | None = None
    wait: float | None = None
    denoiser: float | None = None

    @property
    def own(self) -> float | None:
        """Seconds on the clock that other processes do not stretch, None where there is none."""
        return self.process if self.device is None else self.device

    @property
    def parallel(self) -> bool:
        """Whether several threads worked: process time is then not what a user waits for."""
        return self.process is not None and self.process > _PARALLEL * self.seconds

    @property
    def waited(self) -> bool | None:
        """Whether it met a busy moment, None where nothing tells.

        Where the system does not say, absence from the processor does: one thread that has all its
        work in memory is away only where others have its place.
        """
        if self.wait is not None:
            return self.wait > BUSY * self.seconds
        if self.process is None or self.parallel:
            return None
        return self.seconds - self.process > BUSY * self.seconds

    def to_dict(self) -> dict[str, float]:
        """The figures that are known."""
        return {k: v for k, v in asdict(self).items() if v is not None}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Timing:
        """A timing as `to_dict` gave it."""
        return cls(**{k: data.get(k) for k in cls.__dataclass_fields__})  # type: ignore[arg-type]


def run_queue_waits() -> dict[str, float] | None:
    """Seconds that each thread has waited for a processor, None where the system does not say."""
    try:
        names = os.listdir(_TASKS)
    except OSError:
        return None
    waits = {}
    for name in names:
        try:
            waits[name] = int((_TASKS / name / "schedstat").read_text().split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            continue  # a thread that has ended meanwhile, or a kernel without these figures
    return waits or None


class Stopwatch:
    """Times what runs between its making and `stop`.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        wait_for(device)
        self._waits = run_queue_waits()
        self._begin = self._event()
        self._process = time.process_time()
        self._wall = time.perf_counter()

    def _event(self) -> Any:
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def stop(self) -> Timing:
        """Wait for the device and return what it took."""
        end = self._event()
        wait_for(self._device)
        seconds = time.perf_counter() - self._wall
        process = time.process_time() - self._process if self._device.type == "cpu" else None
        device = None if end is None else float(self._begin.elapsed_time(end)) / 1000.0
        return Timing(seconds, process, device, self._waited())

    def _waited(self) -> float | None:
        now = run_queue_waits()
        if now is None or self._waits is None:
            return None
        return max(total - self._waits.get(name, 0.0) for name, total in now.items())
