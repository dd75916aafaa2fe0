"""Which worker makes which sample: the claims of batch jobs (`ditaccel.batch.workers.claims`).

    OUT/workers/            there while several workers run, and after a kill
      task.json             what is evaluated, as every worker reads it
      queue/                claims and heartbeats; `done/SAMPLE` once a sample has all its rows
      parts/NAME/           each worker's own run folder

One worker makes a sample with all its rows: they are timed next to dense runs of the same process
and judged against the dense frames of the same device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ditaccel.batch.folder import JobFolder
from ditaccel.batch.workers.claims import MAX_DEATHS, Claims
from ditaccel.errors import UsageError

from ..comparison.sampler import Sample

WORKERS, TASK, QUEUE, PARTS = "workers", "task.json", "queue", "parts"
_POLL = 0.2
# A worker notices after a heartbeat (2 s) that its command has died, and may be loading a model.
_PATIENCE = 30.0

Turn = tuple[int, Sample]


class SampleQueue:
    """The samples that several workers share, as one of them sees it.

    Args:
        root: folder of the queue.
        run: name of the run; all workers of one command share it.
        slot: number of this worker, from 0.
        count: of the workers.
        parent: process to live with, None for nobody.
        on_lost: called with the reason when the folder or the parent is gone.
    """

    def __init__(
        self,
        root: Path,
        run: str,
        slot: int = 0,
        count: int = 1,
        parent: int | None = None,
        on_lost: Callable[[str], object] | None = None,
    ) -> None:
        folder = JobFolder(root)
        self._done = root / "done"
        for needed in (folder.claims, folder.workers, self._done):
            needed.mkdir(parents=True, exist_ok=True)
        self._slot, self._count = slot, count
        self.claims = Claims(folder, run, (slot, count), on_lost, parent)

    def is_done(self, sample: Sample) -> bool:
        """Whether some worker has made all rows of a sample."""
        return (self._done / sample.id).exists()

    def turns(
        self, todo: Sequence[Turn], give_up: Callable[[Sample, str], object]
    ) -> Iterator[Turn]:
        """Claim samples one after the other until every one is done, here or by another worker.

        What a dead worker held is claimed again. Each worker begins with another sample.

        Args:
            todo: number in the run and sample.
            give_up: told of a sample over which workers died again and again, with the reason.
        """
        start = self._slot * len(todo) // self._count
        left = [*todo[start:], *todo[:start]]
        while left:
            held = []
            for turn, sample in left:
                claim = None if self.is_done(sample) else self.claims.take(sample.id)
                if claim is None:
                    held.append((turn, sample))
                    continue
                if not self.is_done(sample):  # else somebody finished it just before
                    if claim.deaths >= MAX_DEATHS:
                        reason = f"{claim.deaths} workers died while making it (out of memory?)"
                        give_up(sample, reason)
                    else:
                        yield turn, sample
                    (self._done / sample.id).touch()
                self.claims.release(claim)
            left = [pair for pair in held if not self.is_done(pair[1])]
            if left:
                time.sleep(_POLL)

    def close(self) -> None:
        """Leave; what this worker still held is free."""
        self.claims.close()


def wait_for_others(root: Path) -> None:
    """Wait until no worker of a killed command writes into its part any more.

    Raises:
        UsageError: one still does.
    """
    if not (root / QUEUE / "workers").is_dir():
        return
    queue = SampleQueue(root / QUEUE, "sweep")
    try:
        deadline = time.monotonic() + _PATIENCE
        homes = queue.claims.folder.workers
        while others := [
            home.name
            for home in homes.iterdir()
            if home.name != queue.claims.token and queue.claims.is_alive(home.name)
        ]:
            if time.monotonic() > deadline:
                raise UsageError(
                    f"{root}: worker {others[0]} of an earlier command still runs; end it, or "
                    "wait until it has noticed",
                    "out",
                )
            time.sleep(_POLL)
    finally:
        queue.close()
