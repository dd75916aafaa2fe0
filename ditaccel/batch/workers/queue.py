"""Which item next: what is left of a job, as one worker sees it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from ..folder import JobFolder
from ..making import can_share, shape_key
from ..manifest import Item
from .claims import Claim, Claims


class Queue:
    """The items that are neither done nor failed, claimed one by one.

    A worker takes its own part first and helps with the others' when that is empty. Items that
    somebody alive holds are looked at again later: their worker may die.

    Args:
        folder: of the job.
        claims: of this worker.
        items: that this worker is responsible for, its own part first.
        retry_before: failures older than this (seconds since the epoch) are tried again.
        verify: compare hashes of done files.
        foreign: asked now and then for items of other shards that may be helped with.
    """

    def __init__(
        self,
        folder: JobFolder,
        claims: Claims,
        items: Sequence[Item],
        retry_before: float = 0.0,
        verify: bool = False,
        foreign: Callable[[], Sequence[Item]] = tuple,
    ) -> None:
        self.folder, self.claims = folder, claims
        self._retry_before, self._verify, self._foreign = retry_before, verify, foreign
        self._fresh = deque(items)
        self._held: deque[Item] = deque()
        self._known = {item.id for item in items}
        self._lock = threading.Lock()

    def is_open(self, item: Item) -> bool:
        """Whether an item still wants to be made."""
        if item.error or self.folder.record(item, self._verify) is not None:
            return False
        failure = self.folder.failure(item)
        return failure is None or float(failure.get("finished", 0.0)) < self._retry_before

    def _claim(self, item: Item) -> Claim | None:
        claim = self.claims.take(item.id)
        if claim is not None and not self.is_open(item):
            self.claims.release(claim)  # somebody finished it just before
            return None
        return claim

    def next(self, most: int = 1) -> list[tuple[Item, Claim]]:
        """Claim the next item, and up to `most` of its shape.

        Returns:
            Nothing if all that is left is held by others, or nothing is left (`pending`).
        """
        with self._lock:
            taken = self._take(most)
            if not taken:
                # Those that others held a moment ago: done by now, free, or still held.
                self._fresh, self._held = self._held, deque()
                taken = self._take(most)
            if not taken and not self._held:
                more = [item for item in self._foreign() if item.id not in self._known]
                self._known |= {item.id for item in more}
                self._fresh.extend(more)
                taken = self._take(most)
            return taken

    def _take(self, most: int) -> list[tuple[Item, Claim]]:
        """Claim from the fresh ones; those that others hold are put aside."""
        taken: list[tuple[Item, Claim]] = []
        other: list[Item] = []
        while self._fresh and len(taken) < most and len(other) <= 4 * most:
            item = self._fresh.popleft()
            if taken and not (can_share(item) and shape_key(item) == shape_key(taken[0][0])):
                other.append(item)
                continue
            if not self.is_open(item):
                continue
            claim = self._claim(item)
            if claim is not None:
                taken.append((item, claim))
                if not can_share(item):
                    break
            elif self.is_open(item):
                self._held.append(item)
        self._fresh.extendleft(reversed(other))
        return taken

    def peek(self) -> Item | None:
        """The item that will probably be next."""
        return self._fresh[0] if self._fresh else None

    def is_uniform(self) -> bool:
        """Whether all items ask for the same acceleration."""
        first = self.peek()
        return first is None or all(item.config == first.config for item in self._fresh)

    def give_back(self, item: Item) -> None:
        """Put an item back whose claim was given back, too."""
        with self._lock:
            self._fresh.appendleft(item)

    @property
    def pending(self) -> bool:
        """Whether something is left that others hold."""
        with self._lock:
            return bool(self._fresh or self._held)
