"""`python -P -m ditaccel.eval.workers.worker_main ROOT PART SLOT PARENT`: one of several workers.

It tells the command on stdout, a JSON object per line: `step` for each generation, `note` for what
a person should read, `dense_repeats` at the end. Everything else goes to stderr.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ditaccel.batch.workers.worker_main import INTERRUPTED
from ditaccel.errors import DitaccelError, UsageError
from ditaccel.io.differences import told
from ditaccel.io.files import plain, read_json
from ditaccel.io.progress import Progress

from ..comparison.prepared import Asked, prepare
from ..options import Options
from ..records import read_run
from ..store import RUN, Store
from .parts import unlike
from .sharing import QUEUE, TASK, SampleQueue

Tell = Callable[[dict[str, Any]], object]


class Told(Progress):
    """Progress as lines for the command, which counts for all workers.

    Args:
        tell: takes the lines.
    """

    def __init__(self, tell: Tell) -> None:
        super().__init__(0, quiet=True)
        self._tell = tell

    def step(self, text: str) -> None:
        """Tell of one more generation."""
        self._tell({"step": text})


def work(root: Path, part: Path, slot: int, parent: int | None, tell: Tell) -> None:
    """Make samples until none is left.

    Args:
        root: where `task.json` is.
        part: this worker's run folder; its first generation makes it.
        slot: number of this worker.
        parent: process of the command; None for nobody.
        tell: takes what the command wants to know.

    Raises:
        DitaccelError: another worker would have the same error.
    """
    task = read_json(root / TASK)
    options = Options(**task["options"])
    asked = Asked(task["model"], task["configs"], task["prompts"], task["seeds"], options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)

    def lost(reason: str) -> None:
        os._exit(INTERRUPTED)  # what is finished is on the disk

    queue = SampleQueue(root / QUEUE, task["run"], slot, len(task["devices"]), parent, lost)
    try:
        prepared = prepare(asked, task["devices"][slot])
        _check_setup(prepared.setup, root)
        shared = set(task["samples"])
        todo = [(turn, s) for turn, s in enumerate(asked.samples) if s.id in shared]
        with Store(part, prepared.setup) as store:
            run = prepared.comparison(store, Told(tell), len(task["devices"]))
            tell({"dense_repeats": run.complete("", queue.turns(todo, run.give_up))})
    finally:
        queue.close()


def _check_setup(setup: dict[str, Any], root: Path) -> None:
    """Refuse to make rows that are not those of the command.

    Raises:
        UsageError: what a script has registered is not known here, or a file was changed.
    """
    if found := unlike(plain(setup), read_run(root.parent / RUN)):
        raise UsageError(
            f"its setup is not that of the command ({told(found)}), so it makes nothing; metrics "
            "and methods that a script registers reach workers as an installed plugin only "
            "(entry point ditaccel.plugins)"
        )


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def main(root: str, part: str, slot: int, parent: int) -> int:
    """Work for a command.

    Returns:
        0; 2 for an error that another worker would have, too; 130 when told to stop.
    """
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # Ctrl-C reaches the whole group; the command that started us ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    warnings.simplefilter("ignore")  # the command's own process shows the same ones

    def tell(line: dict[str, Any]) -> None:
        lines.write(json.dumps(line) + "\n")

    try:
        work(Path(root), Path(part), slot, parent, tell)
        return 0
    except DitaccelError as error:
        tell({"note": str(error)})
        return 2
    except (BrokenPipeError, KeyboardInterrupt):
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
