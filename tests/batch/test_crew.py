"""Several worker processes: the same bytes as one makes, and a killed one is replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import ForkedWorker, after
from job_folders import assert_tidy, outputs

from ditaccel.batch.folder import JobFolder
from ditaccel.batch.manifest import Settings
from ditaccel.batch.run import Run, join, make_worker
from ditaccel.batch.workers import local
from ditaccel.batch.workers import worker as module
from ditaccel.cli import main
from ditaccel.io.files import read_lines

Jobs = Callable[..., Path]
Generate = Callable[..., tuple[int, str, str]]


def booked(out: Path) -> list[dict[str, Any]]:
    """The lines of all workers."""
    return [line for path in (out / "results").iterdir() for line in read_lines(path)]


def test_four_workers_one_killed(
    generate: Generate, jobs: Jobs, tmp_path: Path, crew: list[ForkedWorker]
) -> None:
    path, out = jobs(100), tmp_path / "four"
    assert generate(path, out=tmp_path / "one")[0] == 0
    assert not crew
    after(60, lambda: len(list((out / "outputs").glob("*.json"))) > 10, lambda: crew[1].kill())
    code, printed, noted = generate(path, "--workers", "4", out=out)
    assert code == 0 and "100 of 100 items done" in printed
    assert "worker 1 died (signal 9); another takes its place" in noted and len(crew) == 5
    assert outputs(out) == outputs(tmp_path / "one")
    assert_tidy(out)
    assert len(booked(out)) == len({line["id"] for line in booked(out)}) == 100
    assert len({line["worker"] for line in booked(out)}) >= 2
    assert len(read_lines(out / "results.jsonl")) == 100


def test_a_worker_that_cannot_go_on_ends_the_run(
    generate: Generate, jobs: Jobs, tmp_path: Path, crew: list[ForkedWorker], monkeypatch: Any
) -> None:
    def refuse(*_: Any) -> Any:
        raise module.UsageError("the model is damaged")

    monkeypatch.setattr(module, "open_pipeline", refuse)
    code, _, noted = generate(jobs(4), "--workers", "2")
    assert code == 2 and "the model is damaged" in noted and len(crew) == 2
    assert_tidy(tmp_path / "out", finished=False)


def test_workers_that_always_die_end_the_run(
    generate: Generate, jobs: Jobs, tmp_path: Path, crew: list[ForkedWorker], monkeypatch: Any
) -> None:
    monkeypatch.setattr(module, "open_pipeline", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    code, _, noted = generate(jobs(4), "--workers", "2")
    assert code == 2 and "workers keep dying (signal 9)" in noted
    assert_tidy(tmp_path / "out", finished=False)


def test_an_item_that_kills_its_workers_fails_in_the_end(
    model: Path, jobs: Jobs, tmp_path: Path
) -> None:
    """Two workers die over it in one run; the others' items are made."""

    out = tmp_path / "out"
    path = jobs(3)
    arguments = ["generate", str(model), "--jobs", str(path), "--out", str(out), "--quiet"]
    # The run's worker as the crew starts it, in a fork; the item with seed 1 kills it.
    main([*arguments, "--limit", "1", "--workers", "1"])
    folder = JobFolder(out)
    items = folder.items()
    settings = folder.job()["settings"]
    settings = Settings(**{**settings, "seeds": tuple(settings["seeds"]), "save": ("png",)})
    run = Run("r", str(model), settings, ids=tuple(item.id for item in items))

    def deadly() -> int:
        child = os.fork()
        if child == 0:
            plain = module.Maker.make

            def make(self: Any, some: Any, alone: bool = False) -> Any:
                if some[0].seed == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                return plain(self, some, alone)

            module.Maker.make = make  # type: ignore[method-assign]
            claims = join(folder, run)
            make_worker(folder, run, 0, items, claims).run()
            claims.close()
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert [deadly(), deadly(), deadly()] == [-9, -9, 0]
    failure = folder.failure(items[1])
    assert failure is not None and "2 workers died while making it" in failure["reason"]
    assert folder.record(items[2]) is not None


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_run_tidily(
    generate: Generate, jobs: Jobs, tmp_path: Path, crew: list[ForkedWorker], sent: signal.Signals
) -> None:
    out = tmp_path / "out"
    after(
        60,
        lambda: len(list((out / "outputs").glob("*.json"))) > 5,
        lambda: os.kill(os.getpid(), sent),
    )
    code, _, noted = generate(jobs(400), "--workers", "2")
    assert code == 130 and "run the same command again" in noted
    assert all(worker.returncode == 130 for worker in crew)
    assert_tidy(out, finished=False)
    assert 5 < len(read_lines(out / "results.jsonl")) < 400


@pytest.mark.slow
def test_real_processes(model: Path, jobs: Jobs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-P", "-m", "ditaccel", "generate", str(model), "--workers", "2"]
    done = subprocess.run(
        [*command, "--jobs", str(jobs(20)), "--out", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0 and "20 of 20 items done" in done.stdout, done.stderr
    assert_tidy(out)
    # How they share it depends on which was loaded first; that nothing is made twice does not.
    assert len(booked(out)) == len({line["id"] for line in booked(out)}) == 20


def test_killing_the_command_ends_its_workers(
    model: Path, jobs: Jobs, tmp_path: Path, crew: list[ForkedWorker]
) -> None:
    out = tmp_path / "out"
    arguments = ["generate", str(model), "--jobs", str(jobs(3000)), "--out", str(out)]
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os._exit(main([*arguments, "--workers", "2"]))
    end = time.monotonic() + 60
    while len(list((out / "outputs").glob("*.json"))) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    # The workers' heartbeat sees that their parent is gone, and they leave by themselves.
    end = time.monotonic() + 60
    while len(os.listdir(out / "workers")) > 1 and time.monotonic() < end:
        time.sleep(0.05)
    (left,) = os.listdir(out / "workers")
    assert f"-{child}-" in left  # the killed command's own, for the next one to sweep
    assert len(booked(out)) == len({line["id"] for line in booked(out)}) < 3000


def test_a_worker_leaves_whose_command_died_while_it_started(
    generate: Generate, jobs: Jobs, crew: list[ForkedWorker], monkeypatch: Any
) -> None:
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    spawn = local.spawn
    monkeypatch.setattr(local, "spawn", lambda given, env: spawn([*given[:-1], str(gone)], env))
    code, printed, noted = generate(jobs(3000), "--workers", "2")
    assert code == 2 and "the command that started this worker is gone" in noted
    assert "3000 of 3000" not in printed and None not in [worker.returncode for worker in crew]


def test_workers_that_lose_their_command_while_loading_leave_nothing_behind(
    model: Path, jobs: Jobs, tmp_path: Path, crew: list[ForkedWorker], monkeypatch: Any
) -> None:
    workers = tmp_path / "out" / "workers"
    arguments = ["generate", str(model), "--jobs", str(jobs(4)), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(module, "open_pipeline", lambda *_: time.sleep(90))
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os._exit(main([*arguments, "--workers", "2"]))
    end = time.monotonic() + 60
    while len(list(workers.glob("*"))) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    end = time.monotonic() + 60
    while len(os.listdir(workers)) > 1 and time.monotonic() < end:
        time.sleep(0.05)
    (left,) = os.listdir(workers)
    assert f"-{child}-" in left  # the killed command's own
