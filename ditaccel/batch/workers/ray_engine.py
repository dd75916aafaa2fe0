"""The Ray engine: the same items through Ray Data, an actor for each GPU (or several on CPUs).

Ray decides where items go and replaces what dies. It never carries frames: actors write their files
into the job's folder, which all nodes must share, and what is done there stays the only truth; a
restarted actor finds its predecessor's claims dead and makes the items again. What an actor prints
goes to a file of its own under `logs/` there; the command shows results and failures, a line each.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...io.models import line_of
from ..folder import JobFolder
from ..manifest import Item
from ..run import Run, chosen_items, join, make_queue, make_worker, parse_run
from .claims import Claims, on_this_host
from .shards import Rank
from .worker import part_of

# Items that an actor gets at a time: decoding one overlaps with denoising the next.
_CHUNK = 4
_LEAVING = 15.0


class RayWorker:
    """What Ray Data maps over the items: a worker that is loaded once an actor.

    Args:
        root: folder of the job, seen alike from all nodes.
        run: of the command, as JSON.
    """

    def __init__(self, root: str, run: str) -> None:
        self.folder = JobFolder(root)
        self.run = parse_run(json.loads(run))
        self.claims = join(self.folder, self.run, on_lost=self._lost)
        print_into(self.folder.logs / f"{self.claims.token}.log")
        self.records: list[dict[str, Any]] = []
        self.worker = make_worker(self.folder, self.run, 0, [], self.claims, self.records.append)

    def _lost(self, reason: str) -> None:
        self.worker.stop(reason)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Make some items.

        Args:
            batch: column `item`: items as JSON.

        Returns:
            A small row for each item that was made here or failed.
        """
        self.records.clear()
        items = [Item(**json.loads(text)) for text in batch["item"]]
        run = dataclasses.replace(self.run, rank=Rank(), ids=tuple(item.id for item in items))
        self.worker.drain(make_queue(self.folder, run, 0, items, self.claims))
        return {"record": [json.dumps(_small(record)) for record in self.records]}


def print_into(path: Path) -> None:
    """Send all that this process prints from now on to a file, compiled code and children too."""
    path.parent.mkdir(exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(file, standard)
    os.close(file)


@contextmanager
def _quiet_plans() -> Iterator[None]:
    """Ray Data tells the console each plan and its progress; warnings are enough there.

    Its own log file in Ray's session gets everything all the same.
    """
    consoles = [
        handler
        for handler in logging.getLogger("ray.data").handlers
        if isinstance(handler, logging.StreamHandler)
    ]
    levels = [handler.level for handler in consoles]
    for handler in consoles:
        handler.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for handler, level in zip(consoles, levels, strict=True):
            handler.setLevel(level)


def _connect(ray: Any) -> None:
    """Connect to the cluster that is found, else start a local one."""
    if ray.is_initialized():
        return
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        # Ray raises many types here, and plain exceptions
        raise UsageError(
            f"Ray did not start or answer ({line_of(error)}); run the same command again, or start "
            "it first: ray start --head"
        ) from error


def _small(record: dict[str, Any]) -> dict[str, Any]:
    steps = record.get("steps") or {}
    small = {key: record.get(key) for key in ("id", "row", "status", "reason", "worker")}
    return {**small, "steps": {key: steps.get(key, 0) for key in ("calls", "forecast")}}


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise UsageError("ray needs Ray: pip install 'ditaccel[ray]'", "engine") from None
    return ray


def _dataset(ray: Any, folder: JobFolder, run: Run, rows: list[dict[str, str]]) -> Any:
    """The items, mapped by actors; nothing runs until its rows are asked for.

    Raises:
        UsageError: the cluster has no room for an actor.
    """
    # Shards, workers and devices are Ray's business: an actor sees its own GPU as the first.
    on_gpu = run.options.device.startswith("cuda")
    device = "cuda:0" if on_gpu else run.options.device
    threads = run.options.threads or 1
    resources = ray.cluster_resources()
    fit = int(resources.get("GPU", 0) if on_gpu else resources.get("CPU", 1) // threads)
    if fit < 1:
        raise UsageError(f"the Ray cluster has no free {'GPU' if on_gpu else 'CPU'} for an actor")
    workers = min(run.workers or fit, fit, len(rows))
    one = dataclasses.replace(
        run, workers=1, devices=(device,), options=dataclasses.replace(run.options, device=device)
    )
    chunk = max(1, min(_CHUNK, len(rows) // (4 * workers)))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    return ray.data.from_items(rows, override_num_blocks=-(-len(rows) // chunk)).map_batches(
        RayWorker,
        batch_size=chunk,
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        fn_constructor_args=(str(folder.root.resolve()), json.dumps(asdict(one))),
        num_gpus=1 if on_gpu else None,
        num_cpus=None if on_gpu else threads,
    )


def run_ray(
    folder: JobFolder,
    run: Run,
    items: Sequence[Item],
    claims: Claims,
    on_result: Callable[[dict[str, Any]], Any],
) -> None:
    """Work a run off on a Ray cluster: the one that is connected or found, else a local one.

    Args:
        folder: of the job; all nodes must share it.
        run: what to do; `workers` is the number of actors, 0 for all that the cluster can hold.
        items: of the manifest.
        claims: of this process.
        on_result: told each result line, in short.

    Raises:
        UsageError: Ray is missing, or every actor would run into the same.
    """
    ray = _ray()
    queue = make_queue(folder, run, 0, items, claims)
    ours = part_of(chosen_items(items, run), run.rank.index, run.rank.count)
    rows = [{"item": json.dumps(asdict(item))} for item in ours if queue.is_open(item)]
    if not rows:
        return
    _connect(ray)
    dataset = _dataset(ray, folder, run, rows)
    others = _workers_of(folder)
    try:
        with _quiet_plans():
            for row in dataset.iter_rows():
                on_result(json.loads(row["record"]))
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1][:300]
        raise UsageError(
            f"the Ray job broke off ({reason}); what workers said is in {folder.logs}; run the "
            "same command again"
        ) from error
    finally:
        _await_end(folder, others, claims.host)
        for log in folder.logs.glob("*.log"):
            if not log.stat().st_size:
                log.unlink(missing_ok=True)


def _workers_of(folder: JobFolder) -> set[str]:
    """Tokens of the workers that have a folder in a job's folder."""
    return {home.name for home in folder.workers.iterdir()}


def _await_end(folder: JobFolder, others: set[str], host: str) -> None:
    """Wait for actors of this machine to be gone, as Ray ends them, so that they can be swept.

    Those count as well that never made an item, such as one that replaced a dead actor.

    Args:
        folder: of the job.
        others: tokens of workers that were there before the actors.
        host: of this process.
    """
    end = time.monotonic() + _LEAVING
    while time.monotonic() < end:
        if not any(on_this_host(token, host) for token in _workers_of(folder) - others):
            return
        time.sleep(0.1)
