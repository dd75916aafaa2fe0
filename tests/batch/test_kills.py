"""SIGKILL at any moment: the same command goes on, and every item is made exactly once."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from job_folders import assert_tidy, outputs
from tqdm.std import tqdm

from ditaccel.cli import main
from ditaccel.io.files import read_lines

Jobs = Callable[..., Path]
# An item takes hundredths of a second here; kills come while loading, too.
SPAN = 0.4


def _start(command: list[str]) -> int:
    """Run the command in a child: a fork, so that nothing has to be imported again."""
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os._exit(main(command))
    return child


def _killed_until_done(command: list[str], kills: int) -> tuple[int, int]:
    """Kill the command again and again, then let it finish; returns hits and code."""
    moments = random.Random(0)
    hits = 0
    for _ in range(kills):
        child = _start(command)
        time.sleep(moments.uniform(0.0, SPAN))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        hits += os.WIFSIGNALED(status)
    _, status = os.waitpid(_start(command), 0)
    return hits, os.waitstatus_to_exitcode(status)


def _assert_once(out: Path, count: int) -> None:
    assert_tidy(out)
    assert len(outputs(out)) == 2 * count
    merged = [line["id"] for line in read_lines(out / "results.jsonl")]
    assert len(merged) == len(set(merged)) == count
    made = [line["id"] for path in (out / "results").iterdir() for line in read_lines(path)]
    assert sorted(made) == sorted(merged)  # one line an item over all workers, dead ones too


def test_two_commands_at_once_share_the_work(jobs: Jobs, model: Path, tmp_path: Path) -> None:
    """As on two nodes of a cluster: shards of one folder, started at the same time."""
    command = ["generate", str(model), "--jobs", str(jobs(80)), "--out", str(tmp_path / "out")]
    command += ["--workers", "1", "--save", "png,frames", "--quiet", "--shard"]
    children = [_start([*command, f"{index}/2"]) for index in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    # The one that was done first helped the other, so its own file is not the last word.
    assert os.waitpid(_start([*command, "0/1"]), 0)[1] == 0
    _assert_once(tmp_path / "out", 80)


def test_a_child_killed_in_a_progress_bar_stops_no_other(
    jobs: Jobs, model: Path, tmp_path: Path
) -> None:
    """tqdm's own lock is shared with forked children: a killed one would hold it for ever."""
    lock = tqdm.get_lock()
    child = os.fork()
    if child == 0:
        lock.acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    command = ["generate", str(model), "--jobs", str(jobs(2)), "--out", str(tmp_path / "out")]
    assert os.waitpid(_start([*command, "--workers", "1"]), 0)[1] == 0


@pytest.mark.parametrize(
    ("kills", "items"), [(7, 50), pytest.param(20, 150, marks=pytest.mark.slow)]
)
def test_many_kills(kills: int, items: int, jobs: Jobs, model: Path, tmp_path: Path) -> None:
    command = ["generate", str(model), "--jobs", str(jobs(items)), "--save", "png,frames"]
    command += ["--workers", "1"]
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert os.waitpid(_start([*command, "--out", str(whole)]), 0)[1] == 0
    hits, code = _killed_until_done([*command, "--out", str(torn)], kills)
    assert code == 0
    assert hits >= kills // 2, "the run ended before most kills: give it more items"
    assert outputs(torn) == outputs(whole)
    _assert_once(torn, items)
