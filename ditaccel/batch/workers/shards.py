"""Which part of a job is ours: as the user says, or as a launcher says in the environment.

No process group is opened: ranks share nothing but the job's folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import ConfigError


@dataclass(frozen=True)
class Rank:
    """Our place among the processes of one job.

    Attributes:
        index: from 0.
        count: of all.
        local: index on this machine, None if no launcher made one process a device.
        source: who says so, empty if nobody does.
    """

    index: int = 0
    count: int = 1
    local: int | None = None
    source: str = ""


def _whole(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name, "").strip()
    return int(text) if re.fullmatch(r"\d+", text) else None


def parse_shard(text: str) -> Rank:
    """Read `i/n`, i from 0.

    Raises:
        ConfigError: anything else.
    """
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    index, count = (int(g) for g in match.groups()) if match else (0, 0)
    if not 0 <= index < count:
        raise ConfigError(f"{text!r}: it must be i/n with i from 0 to n-1, such as 0/4", "shard")
    return Rank(index, count, source="as given")


def _launched(env: Mapping[str, str]) -> Rank:
    """torchrun, accelerate launch, srun, SkyPilot: processes of one start."""
    for rank, world, local, source in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK", "torchrun or accelerate"),
        # SLURM_NTASKS is set in a batch script as well, where there is one process
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "srun"),
        ("SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES", "", "SkyPilot nodes"),
    ):
        index, count = _whole(env, rank), _whole(env, world)
        if index is not None and count is not None and count > 1 and index < count:
            return Rank(index, count, _whole(env, local), source)
    return Rank(local=_whole(env, "LOCAL_RANK"))


def _array(env: Mapping[str, str]) -> Rank:
    """Slurm array tasks and SkyPilot jobs: starts of their own, numbered by the scheduler."""
    index, count = _whole(env, "SLURM_ARRAY_TASK_ID"), _whole(env, "SLURM_ARRAY_TASK_COUNT")
    low = _whole(env, "SLURM_ARRAY_TASK_MIN") or 0
    step = _whole(env, "SLURM_ARRAY_TASK_STEP") or 1
    if index is not None and count is not None:
        place, rest = divmod(index - low, step)
        if rest or not 0 <= place < count:
            raise ConfigError(
                f"the Slurm array is not even (task {index}, {count} tasks from {low}); "
                "say which part is ours (shard i/n)"
            )
        return Rank(place, count, source="Slurm array")
    index, count = _whole(env, "SKYPILOT_JOB_RANK"), _whole(env, "SKYPILOT_NUM_JOBS")
    if index is not None and count is not None and index < count:
        return Rank(index, count, source="SkyPilot jobs")
    return Rank()


def find_rank(shard: str | None, env: Mapping[str, str] | None = None) -> Rank:
    """Our rank; an array of launches is both multiplied.

    Args:
        shard: such as `0/4`, which replaces the array's or the launcher's own numbers.
        env: environment, by default the process's.

    Raises:
        ConfigError: `shard` is not `i/n`, or the Slurm array has gaps.
    """
    env = os.environ if env is None else env
    inner = _launched(env)
    if shard is not None:
        outer = parse_shard(shard)
        return Rank(outer.index, outer.count, inner.local, outer.source)
    outer = _array(env)
    if outer.count == 1:
        return inner
    if inner.count == 1:
        return Rank(outer.index, outer.count, inner.local, outer.source)
    return Rank(
        outer.index * inner.count + inner.index,
        outer.count * inner.count,
        inner.local,
        f"{outer.source} × {inner.source}",
    )
