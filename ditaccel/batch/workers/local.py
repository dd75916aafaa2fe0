"""The local engine: one worker in this process, or several in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ...errors import UsageError
from ...io.given import one_line
from ..folder import JobFolder
from ..manifest import Item
from ..run import Run, make_worker, write_run
from .claims import MAX_DEATHS, Claims
from .worker_main import INTERRUPTED

Told = Callable[[dict[str, Any]], Any]
_POLL = 0.1


@contextmanager
def _signals(first: Callable[[], Any]) -> Iterator[None]:
    """The first SIGINT or SIGTERM calls `first`; the second ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    count = 0

    def handle(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > 1:
            os._exit(INTERRUPTED)
        first()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Warnings:
    """Warnings as one line each, as everything else that a command says, and each of them once."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Show a warning, if it has not been shown."""
        line = one_line(text)
        with self._lock:
            if line in self._said:
                return
            self._said.add(line)
        print(f"generate: warning: {line}", file=sys.stderr, flush=True)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Show this process's own warnings that way."""
        before = warnings.showwarning
        warnings.showwarning = lambda message, *_, **__: self.say(str(message))
        try:
            yield
        finally:
            warnings.showwarning = before


def _interrupt() -> None:
    raise KeyboardInterrupt


def run_local(
    folder: JobFolder,
    run: Run,
    items: Sequence[Item],
    claims: Claims,
    on_result: Told,
    said: Warnings | None = None,
    pipe: Any = None,
) -> None:
    """Work a run off on this machine.

    Args:
        folder: of the job.
        run: what to do.
        items: of the manifest.
        claims: of this process.
        on_result: told each result line.
        said: shows the warnings of other processes.
        pipe: the pipeline where the caller has loaded it, for one worker in this process.

    Raises:
        UsageError: what every worker would run into (a damaged model, a full disk).
        KeyboardInterrupt: told to stop; what was being denoised is dropped, the rest is kept.
    """
    said = said or Warnings()
    if run.workers == 1:
        _alone(folder, run, items, claims, on_result, pipe)
    else:
        _Crew(folder, run, claims, on_result, said).work()


def _alone(
    folder: JobFolder,
    run: Run,
    items: Sequence[Item],
    claims: Claims,
    on_result: Told,
    pipe: Any = None,
) -> None:
    with _signals(_interrupt):
        worker = make_worker(folder, run, 0, items, claims, on_result, pipe)
    claims.on_lost = worker.stop
    with _signals(worker.stop):
        worker.run()
    if worker.stopped:
        raise KeyboardInterrupt


def spawn(
    arguments: list[str],
    environment: dict[str, str],
    module: str = "ditaccel.batch.workers.worker_main",
) -> subprocess.Popen[str]:
    """Start a worker's module with its result lines in a pipe."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )


class _Crew:
    """Worker processes, watched: one that dies is replaced, and what it held is made again."""

    def __init__(
        self, folder: JobFolder, run: Run, claims: Claims, on_result: Told, said: Warnings
    ) -> None:
        self.folder, self.run, self.on_result, self.said = folder, run, on_result, said
        self.error = ""
        self.path = write_run(claims, run)
        self.stopping = False
        self.results = 0
        self.deaths = 0
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self.readers: list[threading.Thread] = []

    def _start(self, slot: int) -> None:
        environment = dict(os.environ)
        if self.run.options.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.run.options.threads)
        arguments = [str(self.folder.root), str(self.path), str(slot), str(os.getpid())]
        process = spawn(arguments, environment)
        self.processes[slot] = process
        reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        reader.start()
        self.readers.append(reader)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a worker that was killed in mid-line; its result is in the folder
            if "warning" in record:
                self.said.say(str(record["warning"]))
                continue
            if "error" in record:
                self.error = self.error or str(record["error"])
                continue
            self.results += 1
            self.deaths = 0
            self.on_result(record)

    def stop(self) -> None:
        """Tell all workers to stop."""
        self.stopping = True
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()

    def work(self) -> None:
        """Run until every worker has ended."""
        problem = ""
        with _signals(self.stop):
            try:
                for slot in range(self.run.workers):
                    self._start(slot)
                while self.processes:
                    time.sleep(_POLL)
                    for slot, process in list(self.processes.items()):
                        if process.poll() is None:
                            continue
                        del self.processes[slot]
                        problem = problem or self._ended(slot, process.returncode)
            finally:
                self.stop_and_wait()
        for reader in self.readers:
            reader.join(timeout=5)
        if problem:
            raise UsageError(self.error or problem)
        if self.stopping:
            raise KeyboardInterrupt

    def stop_and_wait(self) -> None:
        """Leave no process behind."""
        if not self.processes:
            return
        self.stop()
        for process in self.processes.values():
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _ended(self, slot: int, code: int) -> str:
        """What an ended worker means for the run: a reason to give up, or nothing."""
        if code in (0, INTERRUPTED) or self.stopping:
            return ""
        if code == 2:
            self.stop()
            return "a worker could not go on"
        self.deaths += 1
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if self.deaths > (MAX_DEATHS + 1) * self.run.workers:
            self.stop()
            return f"workers keep dying ({how}) before they make anything; is memory short?"
        print(f"generate: worker {slot} died ({how}); another takes its place", file=sys.stderr)
        self._start(slot)
        return ""
