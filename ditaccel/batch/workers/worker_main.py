"""`python -P -m ditaccel.batch.workers.worker_main FOLDER RUN SLOT PARENT`: a local worker.

What the command that started it shows goes to stdout, a JSON object per line: results, `warning`
and `error`. Everything else goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from ...errors import DitaccelError
from ..folder import JobFolder
from ..run import join, make_worker, read_run
from .claims import Claims

INTERRUPTED = 130


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def main(root: str, run_file: str, slot: int, parent: int) -> int:
    """Work on a job until nothing is left.

    Args:
        root: folder of the job.
        run_file: what `write_run` wrote.
        slot: number of this worker among those of the command.
        parent: process of the command. It is told and not asked for, since the command may have
            died while this process was starting.

    Returns:
        0; 2 for an error that another worker would have, too; 130 when told to stop.
    """
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # Ctrl-C reaches the whole group; the command that started us says what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def tell(record: dict[str, Any]) -> None:
        lines.write(json.dumps(record) + "\n")

    folder = JobFolder(root)
    # All workers warn of the same: the command says it once.
    warnings.showwarning = lambda message, *_, **__: tell({"warning": str(message)})
    try:
        run = read_run(Path(run_file))
        told: list[Any] = []
        joined: list[Claims] = []

        def lost(reason: str) -> None:
            if told:
                told[0].stop(reason)
                return
            for each in joined:
                each.close()
            with contextlib.suppress(OSError):  # the command may be gone
                tell({"error": reason})
            os._exit(2)  # still loading: nothing is claimed yet

        claims = join(folder, run, lost, parent)
        joined.append(claims)
        try:
            signal.signal(signal.SIGTERM, _interrupt)
            worker = make_worker(folder, run, slot, folder.items(), claims, tell)
            told.append(worker)
            signal.signal(signal.SIGTERM, lambda *_: worker.stop())
            worker.run()
            return INTERRUPTED if worker.stopped else 0
        finally:
            claims.close()
    except DitaccelError as error:
        tell({"error": str(error)})
        return 2
    except (BrokenPipeError, KeyboardInterrupt):
        return INTERRUPTED
    except OSError as error:
        tell({"error": str(folder.trouble(error))})
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
