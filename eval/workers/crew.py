"""The workers of one command: its own process is the first, the others are started and watched."""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import torch

from ditaccel.batch.workers.claims import MAX_DEATHS
from ditaccel.batch.workers.local import spawn
from ditaccel.batch.workers.worker_main import INTERRUPTED
from ditaccel.errors import UsageError
from ditaccel.io.files import write_json
from ditaccel.io.progress import Progress

from ..comparison.comparison import Comparison
from ..comparison.prepared import Asked
from .parts import absorb
from .sharing import PARTS, QUEUE, TASK, WORKERS, SampleQueue, Turn

MODULE = "ditaccel.eval.workers.worker_main"
_POLL = 0.1
_PATIENCE = 60.0


def share(
    run: Comparison,
    asked: Asked,
    devices: Sequence[str],
    size: str,
    own: Sequence[Turn],
    fresh: Sequence[Turn],
) -> bool | None:
    """Complete a comparison with several workers.

    Args:
        run: of this process, which is the first worker.
        asked: for what.
        devices: of each worker.
        size: the line that says how much is to be made.
        own: samples that were begun before: only this process sees their rows.
        fresh: samples that all workers share.

    Returns:
        Whether dense came out the same in all workers; None where none of them could tell.

    Raises:
        UsageError: arguments that cannot be handed to another process.
    """
    root = run.store.folder / WORKERS
    name = f"{os.getpid()}-{secrets.token_hex(3)}"
    _write_task(root / TASK, name, asked, devices, fresh)
    queue = SampleQueue(root / QUEUE, name, 0, len(devices))
    try:
        with Crew(root, len(devices), run.progress) as crew:
            turns = chain(own, queue.turns(fresh, run.give_up))
            repeats = [run.complete(size, turns)]
            crew.wait()
    finally:
        queue.close()
    absorb(run.store)
    known = [one for one in (*repeats, *crew.repeats) if one is not None]
    return all(known) if known else None


def _write_task(
    path: Path, name: str, asked: Asked, devices: Sequence[str], fresh: Sequence[Turn]
) -> None:
    """Write down what the other workers do.

    Raises:
        UsageError: an argument of the call is not plain data.
    """
    options = asdict(asked.options)
    if options["threads"] is None and torch.device(devices[0]).type == "cpu":
        options["threads"] = torch.get_num_threads()
    task = {
        "run": name,
        "model": str(asked.model),
        "configs": list(asked.configs),
        "prompts": list(asked.prompts),
        "seeds": list(asked.seeds),
        "options": options,
        "devices": list(devices),
        "samples": [sample.id for _, sample in fresh],
    }
    try:
        json.dumps(task)
    except TypeError as error:
        raise UsageError(
            f"several workers take plain arguments only ({error}); evaluate with one worker",
            "workers",
        ) from None
    write_json(path, task)


class Crew:
    """Worker processes besides this one; a dead one is replaced, and others make what it held.

    Args:
        root: where `task.json` is.
        count: of the workers, this process included.
        progress: what the user sees.

    Attributes:
        repeats: of each worker that has finished: whether its dense runs came out the same.
    """

    def __init__(self, root: Path, count: int, progress: Progress) -> None:
        self.repeats: list[bool | None] = []
        self._root, self._count, self._progress = root, count, progress
        self._threads = str(torch.get_num_threads())  # another thread may see another number
        self._processes: dict[int, Any] = {}
        self._readers: list[threading.Thread] = []
        self._deaths = 0
        self._ending = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="workers", daemon=True)

    def __enter__(self) -> Crew:
        for slot in range(1, self._count):
            self._start(slot)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._watcher.join()
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self._processes.values():
            try:
                process.wait(timeout=_PATIENCE)
            except TimeoutExpired:
                process.kill()
                process.wait()

    def wait(self) -> None:
        """Wait for the workers: they have nothing left to make, and look at dense once more."""
        while self._watcher.is_alive() and self._processes:
            time.sleep(_POLL)
        for reader in self._readers:
            reader.join(timeout=5)

    def _start(self, slot: int) -> None:
        part = self._root / PARTS / f"{slot}-{secrets.token_hex(3)}"
        environment = {**os.environ, "OMP_NUM_THREADS": self._threads}
        process = spawn(
            [str(self._root), str(part), str(slot), str(os.getpid())], environment, MODULE
        )
        self._processes[slot] = process
        reader = threading.Thread(target=self._read, args=(process, slot), daemon=True)
        reader.start()
        self._readers.append(reader)

    def _read(self, process: Any, slot: int) -> None:
        for text in process.stdout:
            try:
                line = json.loads(text)
            except ValueError:
                continue  # of a worker that was killed in the middle of it
            if "step" in line:
                self._deaths = 0
                self._progress.step(line["step"])
            elif "dense_repeats" in line:
                self.repeats.append(line["dense_repeats"])
            else:
                self._progress.note(f"worker {slot}: {line.get('note')}")

    def _watch(self) -> None:
        while not self._ending.wait(_POLL):
            for slot, process in list(self._processes.items()):
                code = process.poll()
                if code is None:
                    continue
                if code not in (0, 2, INTERRUPTED) and self._deaths < MAX_DEATHS * self._count:
                    self._deaths += 1
                    how = f"signal {-code}" if code < 0 else f"exit code {code}"
                    self._progress.note(f"worker {slot} died ({how}); another takes its place")
                    self._start(slot)
                else:
                    # This process makes what is left, however many others have given up.
                    del self._processes[slot]
