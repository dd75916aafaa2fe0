"""A run: what one command asked for, written where its workers find it, and worked off."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..io.files import read_json, write_json
from .audit import parse_audit
from .folder import JobFolder, without_pictures
from .manifest import Item, Settings
from .workers.claims import STALE, Claims
from .workers.queue import Queue
from .workers.shards import Rank
from .workers.worker import Worker, WorkerOptions, by_config, part_of


@dataclass(frozen=True)
class Run:
    """One command's part of a job, as its workers read it.

    Attributes:
        name: unique.
        model: folder or Hub id.
        settings: what decides the outputs.
        rank: which part of the items is ours.
        ids: items that were chosen (`limit`, `filters`).
        workers: processes on this machine.
        devices: of each worker.
        options: of all workers, but for the device.
        stale: seconds of silence after which a worker on another machine counts as dead.
    """

    name: str
    model: str
    settings: Settings
    rank: Rank = field(default_factory=Rank)
    ids: tuple[str, ...] = ()
    workers: int = 1
    devices: tuple[str, ...] = ("cpu",)
    options: WorkerOptions = field(default_factory=WorkerOptions)
    stale: float = STALE


def new_name() -> str:
    """A name for a run."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{secrets.token_hex(2)}"


def write_run(claims: Claims, run: Run) -> Path:
    """Write a run down for its workers, where it goes when its command has ended or died."""
    path = claims.home / "run.json"
    write_json(path, asdict(run))
    return path


def parse_run(data: dict[str, Any]) -> Run:
    """A run from plain data."""
    settings = dict(data["settings"])
    for key in ("seeds", "save"):
        settings[key] = tuple(settings[key])
    options = {**data["options"], "audit": parse_audit(data["options"].get("audit"))}
    return Run(
        **{
            **data,
            "settings": Settings(**settings),
            "rank": Rank(**data["rank"]),
            "options": WorkerOptions(**options),
            "ids": tuple(data["ids"]),
            "devices": tuple(data["devices"]),
        }
    )


def read_run(path: Path) -> Run:
    """What `write_run` wrote.

    Raises:
        UsageError: missing or of another version.
    """
    try:
        return parse_run(read_json(path))
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error}); run the command again") from None


def chosen_items(items: Sequence[Item], run: Run) -> list[Item]:
    """The items that were chosen."""
    chosen = set(run.ids)
    return [item for item in items if item.id in chosen]


def join(
    folder: JobFolder,
    run: Run,
    on_lost: Callable[[str], Any] | None = None,
    parent: int | None = None,
) -> Claims:
    """Register in a job's folder as a member of a run."""
    shard = (run.rank.index, run.rank.count)
    claims = Claims(folder, run.name, shard, on_lost, parent, run.stale)
    folder.drafts = claims.home
    return claims


def make_queue(
    folder: JobFolder, run: Run, slot: int, items: Sequence[Item], claims: Claims
) -> Queue:
    """What a worker of a run shall make, in its order.

    Args:
        folder: of the job.
        run: what to do.
        slot: which of the run's workers, from 0.
        items: of the manifest.
        claims: of the worker.
    """
    ours = chosen_items(items, run)
    rank = run.rank
    part = part_of(ours, rank.index, rank.count)
    # Every worker begins with another item; all of them may take all.
    order = [part_of(part, (slot + k) % run.workers, run.workers) for k in range(run.workers)]

    def foreign() -> list[Item]:
        """Items of other shards that work in this very folder: on others we never come across."""
        seen = claims.shards_seen(rank.count) - {rank.index}
        return [item for index in sorted(seen) for item in part_of(ours, index, rank.count)]

    return Queue(
        folder,
        claims,
        [item for share in order for item in by_config(share)],
        run.options.retry_before,
        run.options.verify,
        foreign,
    )


def make_worker(
    folder: JobFolder,
    run: Run,
    slot: int,
    items: Sequence[Item],
    claims: Claims,
    on_result: Callable[[dict[str, Any]], Any] = lambda line: None,
    pipe: Any = None,
) -> Worker:
    """One worker of a run, its pipeline loaded; for the arguments see `make_queue` and `Worker`."""
    queue = make_queue(folder, run, slot, items, claims)
    options = replace(run.options, device=run.devices[slot])
    return Worker(folder, run.model, run.settings, claims, queue, options, on_result, pipe)


def recover(folder: JobFolder, items: Sequence[Item], claims: Claims) -> int:
    """Tidy up behind dead workers: drafts, half-written lines, missing lines, useless claims.

    Returns:
        How many items were done without a line.
    """
    claims.sweep()
    folder.mend()
    listed = folder.listed()
    missing = 0
    settled = set()
    for item in items:
        record = folder.record(item)
        if record is not None or folder.failure(item) is not None:
            settled.add(item.id)
        if record is not None and item.id not in listed:
            folder.add_result(claims.token, without_pictures(record))
            missing += 1
    claims.clear(settled)
    return missing
