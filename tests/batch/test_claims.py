"""Claims: one holder, dead ones replaced, sleepers found out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ditaccel.batch.folder import JobFolder
from ditaccel.batch.workers import claims as module
from ditaccel.batch.workers.claims import Claim, Claims, on_this_host, start_ticks


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    made = JobFolder(tmp_path)
    made.make()
    return made


@pytest.fixture
def two(folder: JobFolder) -> Iterator[tuple[Claims, Claims]]:
    pair = Claims(folder, "run"), Claims(folder, "run")
    yield pair
    for one in pair:
        one.close()


def dead_worker(folder: JobFolder, item: str, run: str = "run") -> str:
    """A worker that was killed while it held an item; returns its token."""
    child = os.fork()
    if child == 0:
        claims = Claims(folder, run)
        taken = claims.take(item)
        (claims.home / "half.draft").write_text("x")
        os.kill(os.getpid(), signal.SIGKILL if taken else signal.SIGABRT)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    (path,) = folder.workers.glob(f"*-{child}-*-*")
    return path.name


def as_another_host(judge: Claims, other: Claims, age: float) -> None:
    """Let `judge` take `other` for a worker of another machine, last heard of `age` ago."""
    judge.host = "elsewhere"
    then = time.time() - age
    os.utime(other.home / "alive", (then, then))


def test_one_holder(two: tuple[Claims, Claims]) -> None:
    one, other = two
    claim = one.take("a")
    assert claim == Claim("a", 0)
    assert other.take("a") is None and one.take("a") is None
    assert other.take("b") is not None
    one.release(claim)
    assert other.take("a") is not None


def test_many_threads_one_winner(folder: JobFolder, two: tuple[Claims, Claims]) -> None:
    barrier, won = threading.Barrier(16), []

    def grab(claims: Claims) -> None:
        barrier.wait()
        won.append(claims.take("a"))

    threads = [threading.Thread(target=grab, args=(two[i % 2],)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(claim is not None for claim in won) == 1


def test_a_dead_process_is_replaced_at_once_and_swept(folder: JobFolder) -> None:
    token = dead_worker(folder, "a")
    alive = Claims(folder, "run")
    assert alive.take("a") == Claim("a", 1, deaths=1)
    alive.sweep()
    assert not (folder.workers / token).exists() and alive.home.is_dir()
    claim = alive.take("b")
    assert claim is not None
    alive.release(claim)
    alive.close()
    assert os.listdir(folder.workers) == [] and sorted(os.listdir(folder.claims)) == ["a.0", "a.1"]


def test_deaths_of_another_run_do_not_count(folder: JobFolder) -> None:
    dead_worker(folder, "a", run="yesterday")
    alive = Claims(folder, "today")
    assert alive.take("a") == Claim("a", 1, deaths=0)
    alive.close()


def test_two_takers_of_a_dead_claim_one_wins(folder: JobFolder) -> None:
    dead_worker(folder, "a")
    takers = [Claims(folder, "run") for _ in range(4)]
    won = [taker.take("a") for taker in takers]
    assert sum(claim is not None for claim in won) == 1
    for taker in takers:
        taker.close()


def test_other_hosts_are_judged_by_age(folder: JobFolder, two: tuple[Claims, Claims]) -> None:
    one, other = two
    one._stop.set()
    one._thread.join()
    claim = one.take("a")
    assert claim is not None
    as_another_host(other, one, age=module.STALE / 2)
    assert other.take("a") is None and one.holds(claim)
    as_another_host(other, one, age=module.STALE * 2)
    assert other.take("a") == Claim("a", 1, deaths=1)
    # The sleeper wakes up: it must not publish.
    assert not one.holds(claim)


def test_a_number_used_again_is_not_the_same_process(folder: JobFolder) -> None:
    claims = Claims(folder, "run")
    ours, ticks = claims.token, start_ticks(os.getpid())
    assert on_this_host(ours, claims.host) is True
    assert on_this_host(ours.replace(f"-{ticks}-", "-1-"), claims.host) is False
    assert on_this_host(ours, "elsewhere") is None
    claims.close()


def test_a_claim_without_text_is_left_to_its_maker_for_a_while(
    folder: JobFolder, two: tuple[Claims, Claims]
) -> None:
    path = folder.claims / "a.0"
    path.touch()
    assert two[0].take("a") is None
    os.utime(path, (time.time() - 2 * module.STALE,) * 2)
    assert two[0].take("a") == Claim("a", 1)


def test_heartbeat_tells_when_the_folder_is_gone(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT", 0.01)
    told: list[str] = []
    heard = threading.Event()
    claims = Claims(folder, "run", on_lost=lambda reason: (told.append(reason), heard.set()))
    for path in claims.home.iterdir():
        path.unlink()
    claims.home.rmdir()
    assert heard.wait(10) and "took this worker for dead" in told[0]
    claims.close()


def test_start_ticks_know_the_living() -> None:
    assert start_ticks(os.getpid()) == start_ticks(os.getpid()) is not None
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert start_ticks(child.pid) is None
