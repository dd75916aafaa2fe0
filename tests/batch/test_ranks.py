"""Which part is ours, as each launcher says it."""

from __future__ import annotations

import pytest

from ditaccel.batch.workers.shards import Rank, find_rank
from ditaccel.batch.workers.worker import part_of
from ditaccel.errors import ConfigError


@pytest.mark.parametrize(
    ("shard", "env", "expected"),
    [
        (None, {}, Rank()),
        ("3/16", {}, Rank(3, 16, None, "as given")),
        (
            None,
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"},
            Rank(5, 8, 1, "torchrun or accelerate"),
        ),
        (None, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, Rank(0, 1, 0)),
        # a batch script without srun: one process, whatever was allocated
        (None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, Rank()),
        (
            None,
            {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"},
            Rank(2, 4, 0, "srun"),
        ),
        (
            None,
            {
                "SLURM_ARRAY_TASK_ID": "5",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "3",
            },
            Rank(2, 4, None, "Slurm array"),
        ),
        (
            None,
            {
                "SLURM_ARRAY_TASK_ID": "1",
                "SLURM_ARRAY_TASK_COUNT": "2",
                "SLURM_PROCID": "1",
                "SLURM_STEP_NUM_TASKS": "3",
            },
            Rank(4, 6, None, "Slurm array × srun"),
        ),
        (
            None,
            {"SKYPILOT_JOB_RANK": "1", "SKYPILOT_NUM_JOBS": "4"},
            Rank(1, 4, None, "SkyPilot jobs"),
        ),
        # what a user says outweighs the launcher, but not on which GPU
        (
            "0/2",
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"},
            Rank(0, 2, 1, "as given"),
        ),
    ],
)
def test_ranks(shard: str | None, env: dict[str, str], expected: Rank) -> None:
    assert find_rank(shard, env) == expected


@pytest.mark.parametrize("shard", ["4/4", "-1/4", "1", "a/b", "0/0", ""])
def test_no_shard(shard: str) -> None:
    with pytest.raises(ConfigError, match="i/n"):
        find_rank(shard, {})


def test_an_array_with_gaps_is_refused() -> None:
    env = {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"}
    with pytest.raises(ConfigError, match="not even"):
        find_rank(None, env)


def test_parts_cover_everything_once() -> None:
    items = list(range(103))
    parts = [part_of(items, i, 8) for i in range(8)]
    assert sorted(item for part in parts for item in part) == items
    assert {len(part) for part in parts} == {12, 13}
