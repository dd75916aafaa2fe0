"""Time that calls take, on the device they run on, without waiting for it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch


class Stopwatch:
    """Laps of one call: on a GPU by events, which are read only when asked for.

    Attributes:
        exact: whether laps are the device's; elsewhere than on a CPU and on CUDA or ROCm they are
            those of the thread that launches the work.
    """

    def __init__(self, device: torch.device) -> None:
        self.exact = device.type in ("cpu", "cuda")
        # an event cannot be timed inside a graph that is being captured
        self._cuda = device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
        self._marks: list[Any] = []
        self.lap()

    @classmethod
    def at(cls, arguments: Iterable[Any]) -> Stopwatch:
        """A watch on the device of the first tensor among a call's arguments."""
        for value in arguments:
            first = value[0] if isinstance(value, (list, tuple)) and value else value
            if isinstance(first, torch.Tensor):
                return cls(first.device)
        return cls(torch.device("cpu"))

    def lap(self) -> None:
        """End a lap, and begin the next."""
        if not self._cuda:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def seconds(self) -> list[float]:
        """Length of each lap; waits for the device."""
        laps = []
        for start, end in zip(self._marks, self._marks[1:], strict=False):
            if self._cuda:
                end.synchronize()
                laps.append(start.elapsed_time(end) / 1e3)
            else:
                laps.append(end - start)
        return laps
