"""The Ray engine on a real local cluster, one of its actors killed in mid-job."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from job_folders import assert_tidy, outputs

from ditaccel.batch.claims import host_id

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three processes' worth of cluster on this machine, on the loopback interface alone."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    ray.init(
        num_cpus=4,
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=128 << 20,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}},
    )
    yield ray
    ray.shutdown()


def actors(out: Path) -> list[int]:
    """Process numbers of the workers that have registered, but for ourselves."""
    found = []
    for home in (out / "workers").glob("*/"):
        parts = home.name.rsplit("-", 4)
        if parts[1] == host_id() and int(parts[2]) != os.getpid():
            found.append(int(parts[2]))
    return found


def test_an_actor_that_dies_loses_nothing(
    cluster: Any, generate: Callable[..., Any], jobs: Callable[..., Path], tmp_path: Path
) -> None:
    path, out, killed = jobs(400), tmp_path / "ray", []
    assert generate(path, out=tmp_path / "one")[0] == 0

    def kill_one() -> None:
        end = time.monotonic() + 240
        while time.monotonic() < end:
            pids = actors(out)
            if len(pids) >= 3 and list((out / "outputs").glob("*.json")):
                os.kill(pids[0], signal.SIGKILL)
                killed.append(pids[0])
                return
            time.sleep(0.02)

    threading.Thread(target=kill_one, daemon=True).start()
    code, printed, noted = generate(path, "--engine", "ray", "--workers", "3", out=out)
    assert code == 0 and "400 of 400 items done" in printed, noted
    assert killed, "the job ended before an actor could be killed: give it more items"
    assert outputs(out) == outputs(tmp_path / "one")
    assert_tidy(out)
