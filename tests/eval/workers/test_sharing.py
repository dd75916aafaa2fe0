"""Samples that several workers share: each made once, a dead worker's made by another."""

import json
import os
from pathlib import Path

import pytest
from ditaccel.eval.comparison.sampler import make_samples
from ditaccel.eval.workers.sharing import SampleQueue

from ditaccel.batch.workers.claims import MAX_DEATHS

TODO = list(enumerate(make_samples(["a", "b"], [0, 1])))


def refuse(sample, reason):
    raise AssertionError(reason)


def test_every_sample_goes_to_one_worker(tmp_path: Path) -> None:
    one, two = (SampleQueue(tmp_path, "run", slot, 2) for slot in (0, 1))
    made: list[tuple[int, int]] = []
    turns = [queue.turns(TODO, refuse) for queue in (one, two)]
    for step in range(len(TODO)):  # in turns: while one holds a sample, the other takes another
        made.append((step % 2, next(turns[step % 2])[0]))
    assert sorted(turn for _, turn in made) == [0, 1, 2, 3]
    assert [turn for _, turn in made][:2] == [0, 2]  # each begins elsewhere
    turns[0].close()  # what it held is not done: the other one makes it
    one.close()
    assert next(turns[1])[0] == made[2][1]
    assert next(turns[1], None) is None
    two.close()


def test_what_kills_workers_is_given_up(tmp_path: Path) -> None:
    queue = SampleQueue(tmp_path, "run")
    gone = "host-" + queue.claims.host + f"-{os.getpid()}-1-abc"  # this process began later
    (tmp_path / "claims" / "p001-s0.0").write_text(
        json.dumps({"worker": gone, "run": "run", "deaths": MAX_DEATHS - 1})
    )
    given_up = []
    turns = queue.turns(TODO, lambda sample, reason: given_up.append((sample.id, reason)))
    assert [turn for turn, _ in turns] == [0, 2, 3]
    assert given_up == [("p001-s0", "2 workers died while making it (out of memory?)")]
    assert not list((tmp_path / "claims").iterdir())
    queue.close()


@pytest.mark.parametrize("run", ["run", "an earlier one"])
def test_a_dead_workers_sample_is_taken_again(tmp_path: Path, run: str) -> None:
    queue = SampleQueue(tmp_path, "run")
    gone = "host-" + queue.claims.host + f"-{os.getpid()}-1-abc"
    (tmp_path / "claims" / "p000-s0.0").write_text(
        json.dumps({"worker": gone, "run": run, "deaths": 0})
    )
    assert [turn for turn, _ in queue.turns(TODO, refuse)] == [0, 1, 2, 3]
    queue.close()
