"""Which loop's state the methods of a session have at hand, and how it is exchanged and freed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .loops import Loop
from .per_loop import PerLoop


class LoopState:
    """Gives the methods the state of the loop that calls.

    Args:
        parts: what carries the methods out, by kind and by component name; read again each time.

    Attributes:
        lock: held during a transformer call: there is one at a time.
    """

    def __init__(self, *parts: Mapping[str, PerLoop]) -> None:
        self._kinds = parts
        self.lock = threading.RLock()
        self._calling = False
        self._inside: Loop | None = None
        self._late: list[Loop] = []

    def _parts(self) -> dict[tuple[int, str], PerLoop]:
        return {(i, name): kind[name] for i, kind in enumerate(self._kinds) for name in kind}

    def enter(self, loop: Loop) -> None:
        """Give the methods the state of a loop."""
        while self._late:
            self.free(self._late.pop())
        if self._inside is loop:
            return
        parts = self._parts()
        if self._inside is not None:
            self._inside.memories = {key: part.kept() for key, part in parts.items()}
        for key, part in parts.items():
            part.use(loop.memories.pop(key, None))
        self._inside = loop

    def free(self, loop: Loop) -> None:
        """Free what the methods keep for a loop."""
        # Objects die at any time, perhaps in another thread's call: nobody waits for that.
        if not self.lock.acquire(blocking=False):
            self._late.append(loop)
            return
        try:
            loop.memories.clear()
            loop.generation = -1
            if self._inside is loop:
                self.clear()
        finally:
            self.lock.release()

    def clear(self, *names: str) -> None:
        """Free what is at hand, of some components or of all."""
        for (_, name), part in self._parts().items():
            if name in names or not names:
                part.clear()

    def leave(self) -> None:
        """Free what is at hand; no loop is inside any more."""
        self.clear()
        self._late.clear()
        self._inside = None

    @contextmanager
    def call(self) -> Iterator[bool]:
        """For the length of one transformer call, when no other thread's is in progress.

        Yields:
            Whether it is a call in the middle of another one, which is computed in full.
        """
        with self.lock:
            if self._calling:
                with self._paused():
                    yield True
                return
            self._calling = True
            try:
                yield False
            finally:
                self._calling = False

    @contextmanager
    def _paused(self) -> Iterator[None]:
        parts = list(self._parts().values())
        held = [part.pause() for part in parts]
        try:
            yield
        finally:
            for part, call in zip(parts, held, strict=True):
                part.resume(call)
