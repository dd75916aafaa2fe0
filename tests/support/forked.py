"""Worker processes without their seconds of imports: a fork of this one runs the same `main`."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from ditaccel.batch.workers import worker_main


class ForkedWorker:
    """What `local.spawn` returns, as far as it is used."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        read, write = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.close(read)
            os.dup2(write, 1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            root, run, slot, parent = arguments
            code = 1
            try:
                code = worker_main.main(root, run, int(slot), int(parent))
            finally:
                os._exit(code)
        os.close(write)
        self.stdout: Any = os.fdopen(read)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        self.send(signal.SIGKILL)

    def wait(self, timeout: float = 60) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode


def after(seconds: float, ready: Callable[[], Any], act: Callable[[], Any]) -> None:
    """On a thread: wait until `ready`, some seconds at most, then `act`."""

    def run() -> None:
        end = time.monotonic() + seconds
        while not ready() and time.monotonic() < end:
            time.sleep(0.01)
        act()

    threading.Thread(target=run, daemon=True).start()
