"""The folder of a job: where things lie, what is done, and the results of all workers together.

    job.json            what the newest command asked for
    manifest.jsonl      its items, one a line
    outputs/NAME.mp4    files, complete or not there; NAME.json beside them says how they were made
    failed/ID.json      why an item failed
    results/WORKER.jsonl   one line an item, only added to, one file a worker
    results.jsonl       all of them, one line an item, in the order of the manifest
    claims/, workers/   who makes what now (see `claims.py`); empty when nobody works
    shards/             which shards have ever worked here: with those the folder is shared
    runs/               what each command made, and how long it took
    audit/              what came of the items that were also made dense (see `audit.py`)
    logs/               what workers on Ray printed

An item is done when its sidecar is there, names its id, and its files have their sizes: the
sidecar is written last, so nothing else needs to be trusted after a kill.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

from ..errors import UsageError
from ..io import given
from ..io.checked import Check
from ..io.files import append_line, mend_lines, plain, read_lines, unwritten, write_atomically
from ..io.files import write_json as _write_json
from . import shapes
from .manifest import Item, read_manifest

JOB, MANIFEST, RESULTS = "job.json", "manifest.jsonl", "results.jsonl"
DONE, FAILED, AUDITS = "done", "failed", "audit"
# In sidecars alone: lines stay short.
THUMBNAIL, DENSE_THUMBNAIL = "thumbnail", "dense_thumbnail"

Method = TypeVar("Method", bound=Callable[..., Any])


def _load(path: Path, shape: Check) -> dict[str, Any] | None:
    """A JSON object, or None where there is none, or it is damaged or was changed."""
    try:
        data: dict[str, Any] = shape(given.parse_json(path.read_text(encoding="utf-8")), "")
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return data


def sha256(path: Path) -> str:
    """Hash of a file's content; of a folder, over its files' names and contents."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(file.name.encode())
        with file.open("rb") as data:
            while chunk := data.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; -1 where there is none."""
    try:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.iterdir())
        return path.stat().st_size
    except OSError:
        return -1


def _sync(folder: Path) -> None:
    """Bring a folder's names to the disk, where the system lets one."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def guarded(method: Method) -> Method:
    """A method of a job's folder, or of what has one as `folder`: an OSError becomes one line.

    Folders are moved, removed and made read-only while jobs run; the job stops with that line.
    """

    @functools.wraps(method)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        folder = self if isinstance(self, JobFolder) else self.folder
        try:
            return method(self, *arguments, **options)
        except OSError as error:
            raise folder.trouble(error) from error
        except UsageError as error:
            if isinstance(error.__cause__, OSError) and folder.is_gone:
                raise folder.trouble(error.__cause__) from error.__cause__
            raise

    return cast(Method, call)


class JobFolder:
    """One job's folder.

    Args:
        root: the folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = given.path(root)
        self.outputs, self.failed = self.root / "outputs", self.root / FAILED
        self.claims, self.workers = self.root / "claims", self.root / "workers"
        self.logs = self.root / "logs"
        self.results = self.root / "results"
        # Set by who joins: drafts lie with their worker, so that they go when it is swept away.
        self.drafts: Path | None = None

    def make(self) -> None:
        """Make the folder and try it out.

        Raises:
            UsageError: it cannot be written, or holds an evaluation.
        """
        if (self.root / "run.json").exists():
            raise UsageError(f"{self.root} holds an evaluation; choose another folder", "out")
        try:
            for folder in (self.outputs, self.failed, self.claims, self.workers, self.results):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.workers / f".probe-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UsageError(f"{self.root}: not writable ({error.strerror})", "out") from error

    @property
    def is_gone(self) -> bool:
        """Whether the folder has been moved or removed."""
        try:
            return not self.root.is_dir()
        except OSError:
            return False

    def trouble(self, error: OSError) -> UsageError:
        """The line for what the system refused in this folder."""
        if self.is_gone or error.errno in (errno.ENOENT, errno.ENOTDIR):
            what = f"the job's folder {self.root}" if self.is_gone else error.filename
            return UsageError(
                f"{what} is gone (moved or removed while the job ran?); run the same command "
                "again with the place where the folder is now: what lies there stays done"
            )
        return unwritten(Path(str(error.filename or self.root)), error)

    @property
    def exists(self) -> bool:
        """Whether a job lives here."""
        return (self.root / MANIFEST).is_file()

    @guarded
    def items(self) -> list[Item]:
        """The items of the newest command."""
        return read_manifest(self.root / MANIFEST)

    def job(self) -> dict[str, Any]:
        """Content of `job.json`, empty if it is missing."""
        return _load(self.root / JOB, shapes.JOB) or {}

    def check_scheduler(self, name: str) -> None:
        """Refuse to go on with a job under another scheduler: its outputs would not be of one kind.

        Args:
            name: short name of the scheduler that is asked for, empty for the model's own.

        Raises:
            UsageError: the job was begun with another one.
        """
        settings = self.job().get("settings")
        if settings is None:
            return
        begun = settings.get("scheduler", "")
        if begun != name:
            former, now = (
                f"scheduler {each!r}" if each else "the model's own scheduler"
                for each in (begun, name)
            )
            raise UsageError(
                f"{self.root} was begun with {former}, and this command asks for {now}; give "
                "another folder, or the same scheduler"
            )

    def chosen(self, items: Sequence[Item]) -> list[Item]:
        """The items that the newest command asked for (`limit`, `filters`), by default all."""
        ids = self.job().get("chosen")
        wanted = None if ids is None else set(ids)
        return [item for item in items if wanted is None or item.id in wanted]

    def sidecar(self, item: Item) -> Path:
        """Path of an item's sidecar.

        Raises:
            UsageError: it lies outside the folder (a link leads out of it).
        """
        path = self.outputs / f"{item.name}.json"
        if not path.resolve().is_relative_to(self.outputs.resolve()):
            raise UsageError(f"{path} leads out of {self.outputs}; remove the link")
        return path

    @guarded
    def record(self, item: Item, verify: bool = False) -> dict[str, Any] | None:
        """How a done item was made; None if it is not done.

        Args:
            item: of the manifest.
            verify: compare the files' hashes, not their sizes alone.
        """
        if item.error:
            return None
        record = _load(self.sidecar(item), shapes.DONE_RECORD)
        if record is None or record["id"] != item.id:
            return None
        for file in record["files"]:
            path = self.outputs / file["path"]
            if size_of(path) != file["bytes"]:
                return None
            if verify and sha256(path) != file.get("sha256"):
                return None
        return record

    @guarded
    def failure(self, item: Item) -> dict[str, Any] | None:
        """Why an item failed; None if it did not."""
        if item.error:
            line = {"id": item.id, "row": item.row, "status": FAILED, "reason": item.error}
            return {**line, "prompt": item.prompt, "kind": "row"}
        return _load(self.failed / f"{item.id}.json", shapes.FAILED_RECORD)

    @guarded
    def publish(
        self, item: Item, parts: Iterable[tuple[Path, str]], record: dict[str, Any]
    ) -> None:
        """Give finished files their names, then write the sidecar that makes them count.

        Args:
            item: of the manifest.
            parts: each finished file (or folder) and its path relative to `outputs/`.
            record: content of the sidecar.

        Raises:
            UsageError: the disk is full or not writable.
        """
        sidecar = self.sidecar(item)
        try:
            # An older output of this name stops counting before any of its files is replaced.
            sidecar.unlink(missing_ok=True)
            for part, name in parts:
                target = self.outputs / name
                if target.parent != self.outputs and self.outputs.is_dir():
                    target.parent.mkdir(parents=True, exist_ok=True)
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(part, target)
                _sync(target.parent)
        except OSError as error:
            raise unwritten(sidecar, error) from error
        self.write(sidecar, record)
        (self.failed / f"{item.id}.json").unlink(missing_ok=True)

    @guarded
    def fail(self, item: Item, record: dict[str, Any]) -> None:
        """Keep the reason of a failure."""
        self.write(self.failed / f"{item.id}.json", record)

    @guarded
    def add_result(self, worker: str, record: dict[str, Any]) -> None:
        """Add a line to the worker's results."""
        append_line(self.results / f"{worker}.jsonl", record)

    @guarded
    def mend(self) -> None:
        """Cut lines that a kill left half-written; only while no worker of that file lives."""
        for path in self.results.glob("*.jsonl"):
            if not (self.workers / path.stem).exists():
                mend_lines(path)

    @guarded
    def listed(self) -> set[str]:
        """Ids of all items that some worker's results call done."""
        return {
            str(line.get("id"))
            for path in self.results.glob("*.jsonl")
            for line in read_lines(path)
            if line.get("status") == DONE
        }

    @guarded
    def merged(self, items: Sequence[Item], verify: bool = False) -> list[dict[str, Any]]:
        """One line for each item that is done or has failed, in the order of the manifest.

        The sidecars decide, not the lines: a line says that an item was made once, the sidecar that
        it is still there.
        """
        found = []
        for item in items:
            record = self.record(item, verify) or self.failure(item)
            if record is not None:
                found.append(plain(without_pictures(record)))
        return found

    @guarded
    def thumbnail(self, item: Item, which: str = THUMBNAIL) -> str | None:
        """A small picture of a done item as a data URI, if its sidecar has one."""
        found = (_load(self.sidecar(item), shapes.DONE_RECORD) or {}).get(which)
        return found if isinstance(found, str) and found.startswith("data:image/") else None

    @guarded
    def add_audit(self, line: dict[str, Any]) -> None:
        """Keep what came of an audited item."""
        (self.root / AUDITS).mkdir(exist_ok=True)
        self.write(self.root / AUDITS / f"{line['id']}.json", line)

    @guarded
    def audits(self, known: Container[str] = ()) -> dict[str, dict[str, Any]]:
        """What came of audited items, by their ids; those that are known are left out."""
        paths = (path for path in (self.root / AUDITS).glob("*.json") if path.stem not in known)
        found = {path.stem: _load(path, shapes.AUDIT) for path in paths}
        return {stem: line for stem, line in found.items() if line is not None}

    @guarded
    def write_results(self, items: Sequence[Item]) -> list[dict[str, Any]]:
        """Write `results.jsonl`; returns its lines."""
        lines = self.merged(items)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_atomically(self.root / RESULTS, lambda file: file.write(text.encode()), self.drafts)
        return lines

    @guarded
    def write(self, path: Path, data: dict[str, Any]) -> None:
        """Write a JSON file of this job, as a whole or not at all."""
        _write_json(path, data, self.drafts)

    @guarded
    def foreign(self, items: Sequence[Item]) -> int:
        """Outputs that no item of the manifest asks for (of other rows or configs)."""
        wanted = {f"{item.name}.json" for item in items}
        here = (p.relative_to(self.outputs).as_posix() for p in self.outputs.rglob("*.json"))
        return sum(name not in wanted for name in here)


def without_pictures(record: dict[str, Any]) -> dict[str, Any]:
    """A sidecar's content as a line of results has it."""
    return {k: v for k, v in record.items() if k not in (THUMBNAIL, DENSE_THUMBNAIL)}


def item_facts(item: Item) -> dict[str, Any]:
    """What a result line says of the item itself."""
    return {k: v for k, v in asdict(item).items() if k != "error"}
