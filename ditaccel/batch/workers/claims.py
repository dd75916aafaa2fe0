"""Who makes which item: claims that are made exclusively, held by a heartbeat and taken over.

A worker registers as `workers/TOKEN/` and touches `alive` in it every few seconds. A claim is the
file `claims/ID.N`, made exclusively, with the token in it; the highest N holds. A claim whose
worker is dead is taken over by making `ID.N+1`: of two takers one wins, and nothing is deleted that
somebody else may just have renewed. A worker that was only asleep sees the higher number before it
publishes, and drops its item.

Dead means: its process is gone (seen at once on the same host), or its heartbeat is old. Ages are
taken against a file that the judge has just touched on the same file system, so clocks of
different machines need not agree.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...io.files import unwritten
from ..folder import JobFolder, guarded

BEAT, STALE = 2.0, 60.0
# Deaths over one item within one run after which it counts as the item's fault.
MAX_DEATHS = 2


def host_id() -> str:
    """This machine as processes see it: containers that share a host name count as several."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        parts.append("no /proc")
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:8]


def on_this_host(token: str, host: str) -> bool | None:
    """Whether the process of a worker of this host lives; None for workers of other hosts."""
    parts = token.rsplit("-", 4)
    if len(parts) != 5 or parts[1] != host or not parts[2].isdigit():
        return None
    began = start_ticks(int(parts[2]))
    return began is not None and began == parts[3]


def start_ticks(pid: int) -> str | None:
    """When a process began: tells it from a later one with the same number. None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            return "unknown"
        return "unknown"
    # A zombie does nothing any more.
    return None if fields[0] == "Z" else fields[19]


@dataclass(frozen=True)
class Claim:
    """A claim that we hold.

    Attributes:
        id: of the item.
        number: of the claim on it.
        deaths: workers of this run that died while they held earlier ones.
    """

    id: str
    number: int
    deaths: int = 0


class Claims:
    """One worker's hand in the game.

    Args:
        folder: of the job.
        run: name of the run (all workers that one command started).
        shard: `(index, count)` that this worker belongs to.
        on_lost: called when the heartbeat finds that the folder is gone or the parent has died.
        parent: process to live with, None for nobody.
        stale: seconds of silence after which a worker on another host counts as dead.
    """

    def __init__(
        self,
        folder: JobFolder,
        run: str,
        shard: tuple[int, int] = (0, 1),
        on_lost: Callable[[str], Any] | None = None,
        parent: int | None = None,
        stale: float = STALE,
    ) -> None:
        self.folder, self.run, self.stale = folder, run, stale
        self.host = host_id()
        name = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())[:40]
        # The token says where the process is: it is known from the moment that its folder is there.
        ticks = start_ticks(os.getpid())
        self.token = f"{name}-{self.host}-{os.getpid()}-{ticks}-{secrets.token_hex(3)}"
        self.home = folder.workers / self.token
        self.on_lost, self._parent = on_lost, parent
        self._stop = threading.Event()
        self._register(shard)
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    @guarded
    def _register(self, shard: tuple[int, int]) -> None:
        self.folder.workers.mkdir(exist_ok=True)  # not its parents: they were there
        self.home.mkdir()
        self._touch()
        # Remembered after the workers are gone: who has ever shared this folder.
        shards = self.folder.root / "shards"
        shards.mkdir(exist_ok=True)
        (shards / f"{shard[0]}-of-{shard[1]}").touch()

    def _touch(self) -> float:
        """Touch our heartbeat; returns the file system's time."""
        path = self.home / "alive"
        path.touch()
        return path.stat().st_mtime

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            lost = ""
            try:
                if self.folder.is_gone:
                    lost = str(self.folder.trouble(FileNotFoundError()))
                elif not self.home.is_dir():
                    lost = f"{self.home} is gone: another process took this worker for dead"
                else:
                    self._touch()
            except OSError as error:
                lost = f"{self.home} cannot be written any more ({error.strerror})"
            if self._parent is not None and os.getppid() != self._parent:
                lost = "the command that started this worker is gone"
            if lost and self.on_lost is not None:
                self.on_lost(lost)
                return

    def is_alive(self, token: str) -> bool:
        """Whether a worker still works."""
        here = on_this_host(token, self.host)
        if here is not None:
            return here and (self.folder.workers / token).is_dir()
        try:
            age = self._touch() - (self.folder.workers / token / "alive").stat().st_mtime
        except OSError:
            return self._is_young(self.folder.workers / token)
        return age < self.stale

    def _is_young(self, path: Path) -> bool:
        """Whether something half-made may still be finished by its maker."""
        try:
            return self._touch() - path.stat().st_mtime < self.stale
        except OSError:
            return False

    def _claims_on(self, item: str) -> list[tuple[int, Path]]:
        found = []
        for entry in os.scandir(self.folder.claims):
            name, _, number = entry.name.rpartition(".")
            if name == item and number.isdigit():
                found.append((int(number), Path(entry.path)))
        return sorted(found)

    def _holder(self, path: Path) -> dict[str, Any]:
        try:
            data = json.loads(path.read_text())
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    @guarded
    def holder(self, item: str) -> str | None:
        """Token of the living worker that holds an item, None if it is free."""
        claims = self._claims_on(item)
        if not claims:
            return None
        path = claims[-1][1]
        token = str(self._holder(path).get("worker") or "")
        if token:
            return token if self.is_alive(token) else None
        # Killed between making the file and writing it, or about to write.
        return "unknown" if self._is_young(path) and path.exists() else None

    @guarded
    def take(self, item: str) -> Claim | None:
        """Claim an item; None if somebody alive holds it."""
        claims = self._claims_on(item)
        number = deaths = 0
        if claims:
            if self.holder(item) is not None:
                return None
            number, before = claims[-1][0] + 1, self._holder(claims[-1][1])
            if before.get("run") == self.run:
                known = before.get("deaths")
                deaths = (known if isinstance(known, int) else 0) + 1
        path = self.folder.claims / f"{item}.{number}"
        text = json.dumps({"worker": self.token, "run": self.run, "deaths": deaths})
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return None
        except OSError as error:
            raise unwritten(path, error) from error
        try:
            os.write(handle, text.encode())
        except OSError as error:
            path.unlink(missing_ok=True)
            raise unwritten(path, error) from error
        finally:
            os.close(handle)
        return Claim(item, number, deaths)

    @guarded
    def holds(self, claim: Claim) -> bool:
        """Whether a claim is still ours: nobody took it over while we were asleep."""
        claims = self._claims_on(claim.id)
        return bool(claims) and claims[-1][0] == claim.number and self.home.is_dir()

    @guarded
    def release(self, claim: Claim) -> None:
        """Give a claim back, with the dead ones below it."""
        for number, path in self._claims_on(claim.id):
            if number <= claim.number:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave: the heartbeat ends and the worker's folder goes, with all drafts in it."""
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=2 * BEAT)
        shutil.rmtree(self.home, ignore_errors=True)

    @guarded
    def sweep(self) -> None:
        """Remove the folders of dead workers, with their drafts."""
        for home in list(self.folder.workers.iterdir()):
            if home.name != self.token and home.is_dir() and not self.is_alive(home.name):
                shutil.rmtree(home, ignore_errors=True)

    @guarded
    def clear(self, settled: set[str]) -> None:
        """Remove claims that dead workers left on items that are done or have failed."""
        for entry in list(os.scandir(self.folder.claims)):
            item = entry.name.rpartition(".")[0]
            if item in settled and self.holder(item) is None:
                Path(entry.path).unlink(missing_ok=True)

    @guarded
    def shards_seen(self, count: int) -> set[int]:
        """Shards of `count` that have ever worked in this folder: with those it is shared."""
        seen = set()
        for path in (self.folder.root / "shards").glob(f"*-of-{count}"):
            index = path.name.split("-")[0]
            if index.isdigit():
                seen.add(int(index))
        return seen
