"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_LINE_SECONDS = 15.0


def duration(seconds: float) -> str:
    """A time span as people say it: `42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Progress:
    """Counts what is made.

    Args:
        total: generations of the run.
        done: those that an earlier part of it made.
        quiet: show nothing.
        name: what lines begin with.
        unit: what is counted, in the plural.
        say: takes the lines, in place of a bar or of the terminal.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        quiet: bool = False,
        name: str = "eval",
        unit: str = "generations",
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._name, self._unit, self._say = name, unit, say
        self._total, self._first, self._done, self._quiet = total, done, done, quiet
        self._start = self._shown = time.monotonic()
        self._bar: Any = None
        self._lock = threading.Lock()  # the lines of several workers are read by threads
        if not quiet and say is None and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit=f" {unit}", dynamic_ncols=True)

    def begin(self) -> None:
        """Start the clock of the time left: warm-ups do not count as progress."""
        self._start = self._shown = time.monotonic()

    def note(self, text: str) -> None:
        """Say a line beside the bar."""
        if self._quiet:
            return
        if self._say is not None:
            self._say(text)
        elif self._bar is not None:
            self._bar.write(f"{self._name}: {text}", file=sys.stderr)
        else:
            print(f"{self._name}: {text}", file=sys.stderr, flush=True)

    def step(self, text: str) -> None:
        """One more is done."""
        with self._lock:
            self._step(text)

    def _step(self, text: str) -> None:
        self._done += 1
        if self._bar is not None:
            self._bar.set_postfix_str(text[:40])
            self._bar.update()
            return
        now = time.monotonic()
        if now - self._shown >= _LINE_SECONDS and self._done > self._first:
            self._shown = now
            each = (now - self._start) / (self._done - self._first)
            left = duration(each * (self._total - self._done))
            more = f", {text}" if text else ""
            self.note(f"{self._done}/{self._total} {self._unit}, about {left} left{more}")

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
