"""A worker: one pipeline, loaded once, that makes items until none is left."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...errors import DitaccelError, UsageError
from ...io.arguments import AUTO
from ...io.factory import Opened
from ...io.files import read_json
from ...io.models import line_of
from ...io.opening import open_pipeline
from ...io.provenance import versions
from ...io.schedulers import put_scheduler
from ..audit import Audit, Watch
from ..encode import thumbnail, write_files
from ..folder import (
    DENSE_THUMBNAIL,
    DONE,
    FAILED,
    JOB,
    THUMBNAIL,
    JobFolder,
    item_facts,
    sha256,
    size_of,
)
from ..making import Made, Maker, is_out_of_memory, release_memory
from ..manifest import Item, Settings
from ..overlap import Interrupted, Retry, Seam
from .claims import MAX_DEATHS, Claim, Claims
from .queue import Queue

# What is wrong with the disk is not the item's fault.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
# What is wrong with a file name is.
_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
_POLL = 0.5


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker runs; nothing of it changes an output, but for `batch`, `threads` and `audit`.

    Attributes:
        device: torch device.
        threads: CPU threads of torch, None leaves its setting.
        lanes: calls in flight; from 2 on, decoding and encoding overlap with denoising.
        batch: items of one shape in a call.
        retry_before: failures older than this are tried again.
        verify: compare hashes of done files.
        linger: wait for items that others hold, in case they die.
        audit: which items are also made dense, and what follows; None for none.
    """

    device: str = "cpu"
    threads: int | None = None
    lanes: int = 2
    batch: int = 1
    retry_before: float = 0.0
    verify: bool = False
    linger: bool = True
    audit: Audit | None = None


@dataclass
class Tally:
    """What a worker did."""

    done: int = 0
    failed: int = 0
    dropped: int = 0
    error: str = ""
    seconds: dict[str, float] = field(default_factory=dict)


class Worker:
    """Makes items.

    Args:
        folder: of the job.
        model: folder or Hub id.
        settings: of the job.
        claims: of this worker.
        queue: what to make.
        options: how.
        on_result: told each result line.
        pipe: the pipeline where the caller has loaded it; None to open the model.
    """

    def __init__(
        self,
        folder: JobFolder,
        model: str,
        settings: Settings,
        claims: Claims,
        queue: Queue,
        options: WorkerOptions,
        on_result: Callable[[dict[str, Any]], Any] = lambda line: None,
        pipe: Any = None,
    ) -> None:
        self.folder, self.settings, self.claims, self.queue = folder, settings, claims, queue
        self.options, self._on_result = options, on_result
        self._write = threading.Lock()
        self._stop = threading.Event()
        self.tally = Tally()
        self._watch = None if options.audit is None else Watch(folder, options.audit)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._versions = versions("av", "safetensors")
        dtype = None if settings.dtype == AUTO else settings.dtype
        opened = (
            open_pipeline(model, options.device, dtype, settings.pipeline or None)
            if pipe is None
            else Opened(pipe)
        )
        self.pipe = opened.pipe
        if settings.pipeline:
            self._check_class()
        put_scheduler(self.pipe, settings.scheduler or None)
        self.seam = Seam(self.pipe, overlap=options.lanes > 1)
        self.maker = Maker(self.pipe, self.seam, settings.save, opened.call, settings.max_input)
        first = queue.peek()
        if first is not None and queue.is_uniform():
            # What the model refuses, it refuses for every item: say so once, now.
            self.maker.set_config(first.config)

    def _check_class(self) -> None:
        """What a user's function made must be what the rows were checked for."""
        planned = read_json(self.folder.root / JOB).get("pipeline")
        found = type(self.pipe).__name__
        if planned not in (None, found):
            raise UsageError(
                f"{self.settings.pipeline} returned {found}, and the rows were checked for "
                f"{planned}; annotate the function with the class that it returns: `-> {found}`",
                "pipeline",
            )

    def stop(self, reason: str = "") -> None:
        """Drop what is being denoised, finish what is being written, and leave `run`."""
        if reason and not self.tally.error:
            self.tally.error = reason
        self._stop.set()
        self.seam.stopping = True

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def run(self) -> Tally:
        """Work until nothing is left, then let go of the pipeline.

        Raises:
            UsageError: the disk is full, or the like: nothing is lost, run again.
        """
        try:
            return self.drain()
        finally:
            self.maker.close()

    def drain(self, queue: Queue | None = None) -> Tally:
        """Work until nothing is left in the queue, or in another one.

        Raises:
            UsageError: the disk is full, or the like: nothing is lost, run again.
        """
        self.queue = queue or self.queue
        lanes = [
            threading.Thread(target=self._lane, name=f"lane-{i}", daemon=True)
            for i in range(max(1, self.options.lanes))
        ]
        for lane in lanes:
            lane.start()
        # Waking up regularly lets the main thread see signals.
        while any(lane.is_alive() for lane in lanes):
            for lane in lanes:
                lane.join(timeout=0.1)
        if self.tally.error:
            raise UsageError(self.tally.error)
        return self.tally

    def _lane(self) -> None:
        if self.options.threads is not None:
            torch.set_num_threads(self.options.threads)
        device = torch.device(self.options.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        try:
            while not self._stop.is_set():
                self.seam.baton.acquire()
                try:
                    done = self._stop.is_set() or (self._watch is not None and self._watch.stopped)
                    work = [] if done else self.queue.next(self.options.batch)
                except BaseException:
                    self.seam.baton.release()
                    raise
                if work:
                    self._work(work)
                    continue
                self.seam.baton.release()
                if done or not self.options.linger or not self.queue.pending:
                    return
                self._stop.wait(_POLL)
        except DitaccelError as error:
            self.stop(str(error))
        except BaseException as error:
            traceback.print_exc(file=sys.stderr)
            self.stop(f"the worker broke: {line_of(error)}")

    def _work(self, work: list[tuple[Item, Claim]]) -> None:
        """Make claimed items. Holds the baton when it begins, not when it returns."""
        if any(claim.deaths >= MAX_DEATHS for _, claim in work):
            self.seam.baton.release()
            self._leave_deadly(work)
            return
        began = time.time()
        if self._watch is not None:
            work = [(self._watch.current(item), claim) for item, claim in work]
        try:
            made = self._make([item for item, _ in work])
            audits = self._audited([item for item, _ in work], made)
        except Interrupted:
            for _, claim in work:
                self.claims.release(claim)
            self.tally.dropped += len(work)
            return
        if isinstance(made, list):
            for (item, claim), one in zip(work, made, strict=True):
                self._keep(item, claim, one, began, len(work), audits.get(item.id))
        elif len(work) > 1:
            # Together they failed: alone the good ones will not.
            for pair in work:
                self.seam.baton.acquire()
                self._work([pair])
        else:
            self._failed(work[0], made)

    def _leave_deadly(self, work: list[tuple[Item, Claim]]) -> None:
        """Give up items over which workers died, and give the others back."""
        for item, claim in work:
            if claim.deaths >= MAX_DEATHS:
                reason = f"{claim.deaths} workers died while making it (out of memory?)"
                self._fail(item, claim, "died", reason)
            else:
                self.claims.release(claim)
                self.queue.give_back(item)

    def _make(self, items: list[Item]) -> list[Made] | Exception | None:
        """Call the pipeline, again where calls got in each other's way or memory ran out.

        Returns:
            What was made, else the error; None where calls kept getting in each other's way.

        Raises:
            Interrupted: the worker is to stop.
        """
        trouble: Exception | None = None
        for attempt in range(3):
            if attempt:
                self.seam.baton.acquire()
            try:
                return self.maker.make(items, alone=attempt > 0)
            except Interrupted:
                raise
            except Retry:
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    return error
                trouble = error.with_traceback(None)  # its frames hold tensors
                if attempt:
                    break
            release_memory()
        return trouble

    def _audited(
        self, items: list[Item], made: list[Made] | Exception | None
    ) -> dict[str, dict[str, Any]]:
        """What came of those that are audited, by id."""
        if self._watch is None or not isinstance(made, list):
            return {}

        def dense(item: Item) -> list[Made] | Exception | None:
            self.seam.baton.acquire()
            return self._make([replace(item, config=None)])

        return self._watch.compared(items, made, dense)

    def _keep(
        self,
        item: Item,
        claim: Claim,
        made: Made,
        began: float,
        shared: int,
        audit: dict[str, Any] | None,
    ) -> None:
        """Write what was made; what goes wrong with one item is that item's failure.

        Raises:
            UsageError: the disk, which would go wrong for every item.
        """
        try:
            self._finish(item, claim, made, began, shared, audit)
        except OSError as error:
            if error.errno not in _DISK:
                self._failed((item, claim), error)
                return
            self.claims.release(claim)
            raise UsageError(
                f"cannot write to {self.folder.root} ({error.strerror}); make room, then run "
                "the same command again: what is done stays done"
            ) from error
        except DitaccelError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno not in _NAMES:
                self.claims.release(claim)
                raise
            self._failed((item, claim), error)

    def _failed(self, pair: tuple[Item, Claim], error: Exception | None) -> None:
        item, claim = pair
        if error is None:
            self._fail(item, claim, "error", "calls kept getting in each other's way")
        elif is_out_of_memory(error):
            self._fail(item, claim, "out of memory", f"out of memory: {line_of(error)}")
            release_memory()
        else:
            trace = "".join(traceback.format_exception(error)[-6:])
            self._fail(item, claim, "error", line_of(error), trace)

    def _fail(
        self, item: Item, claim: Claim, kind: str, reason: str, trace: str | None = None
    ) -> None:
        record = {
            **item_facts(item),
            "status": FAILED,
            "kind": kind,
            "reason": reason,
            "worker": self.claims.token,
            "finished": time.time(),
        }
        if trace:
            record["trace"] = trace
        if not self.claims.holds(claim):
            return
        with self._write:
            self.folder.fail(item, record)
            self.folder.add_result(self.claims.token, record)
            self.tally.failed += 1
        self.claims.release(claim)
        self._on_result(record)

    def _memory(self) -> dict[str, Any]:
        device = torch.device(self.options.device)
        if device.type == "cuda":
            return {
                "bytes": torch.cuda.max_memory_allocated(device),
                "what": "most that the worker had on its device so far",
            }
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        scale = 1 if sys.platform == "darwin" else 1024
        return {"bytes": usage * scale, "what": "most that the worker's process held so far"}

    def _finish(
        self,
        item: Item,
        claim: Claim,
        made: Made,
        began: float,
        shared: int,
        audit: dict[str, Any] | None,
    ) -> None:
        """Write an item's files and publish them, unless somebody else has taken it over."""
        start = time.perf_counter()
        drafts = self.claims.home / f"{claim.id}.{claim.number}"
        drafts.mkdir()
        try:
            parts = write_files(
                drafts,
                item.name,
                self.settings.save,
                made.frames,
                made.latents,
                item.fps,
                self.settings.codec,
                self.settings.crf,
            )
            encoded = time.perf_counter() - start
            files = [
                {**facts, "path": name, "bytes": size_of(draft), "sha256": sha256(draft)}
                for draft, name, facts in parts
            ]
            record = self._record(item, made, files, encoded, began, shared)
            pictures = {THUMBNAIL: None if made.frames is None else thumbnail(made.frames)}
            if audit is not None:
                pictures[DENSE_THUMBNAIL] = audit.pop(DENSE_THUMBNAIL, None)
                record["audit"] = audit
            if not self.claims.holds(claim):
                self.tally.dropped += 1
                return  # somebody took us for dead, and makes it again
            with self._write:
                drafted = [(draft, name) for draft, name, _ in parts]
                self.folder.publish(item, drafted, {**record, **pictures})
                if audit is not None and "psnr" in audit:
                    self.folder.add_audit({"id": item.id, "config": item.config, **audit})
                self.folder.add_result(self.claims.token, record)
                self.tally.done += 1
                for part, seconds in record["seconds"].items():
                    self.tally.seconds[part] = self.tally.seconds.get(part, 0.0) + seconds
        finally:
            shutil.rmtree(drafts, ignore_errors=True)
        self.claims.release(claim)
        self._on_result(record)

    def _record(
        self,
        item: Item,
        made: Made,
        files: list[dict[str, Any]],
        encoded: float,
        began: float,
        shared: int,
    ) -> dict[str, Any]:
        """The result line of an item that was made, as plain data."""
        turn = made.turn
        record: dict[str, Any] = {
            **item_facts(item),
            "status": DONE,
            "files": files,
            "shape": None if made.frames is None else list(made.frames.shape),
            "steps": turn.stats or {},
            "seconds": {
                "denoise": turn.denoise_seconds / shared,
                "decode": turn.decode_seconds / shared,
                "encode": encoded,
                "wait": turn.wait_seconds,
            },
            "memory": self._memory(),
            "batch": shared,
            "began": began,
            "finished": time.time(),
            "worker": self.claims.token,
            "host": socket.gethostname(),
            "device": self.options.device,
            "threads": torch.get_num_threads(),
            "versions": self._versions,
        }
        if self.settings.scheduler:
            record["scheduler"] = self.settings.scheduler
        if self._watch is not None and (safer := self._watch.audit.name_of(item.config)):
            record["safer"] = safer
        plain: dict[str, Any] = json.loads(json.dumps(record, default=str))
        return plain


def part_of(items: list[Item], index: int, count: int) -> list[Item]:
    """Every `count`-th item from `index` on: sizes and prompts spread evenly."""
    return items[index::count]


def by_config(items: list[Item]) -> list[Item]:
    """Items with the same acceleration together, so that it rarely changes; else in order."""
    places: dict[str, int] = {}
    for item in items:
        places.setdefault(json.dumps(item.config, sort_keys=True), len(places))
    return sorted(items, key=lambda item: places[json.dumps(item.config, sort_keys=True)])
