"""The Ray engine on a real local cluster, one of its actors killed in mid-job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from job_folders import assert_tidy, outputs

from ditaccel.batch.workers import ray_engine
from ditaccel.batch.workers.claims import host_id

slow = pytest.mark.slow


def test_a_cluster_that_does_not_start_is_one_line(
    generate: Callable[..., Any], jobs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("The current node timed out.\nThis could happen because …")

    ray = SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setattr(ray_engine, "_ray", lambda: ray)
    code, _, noted = generate(jobs(1), "--engine", "ray")
    assert code == 2 and noted.count("\n") == 1
    assert "Ray did not start or answer (The current node timed out" in noted


def test_all_that_a_process_prints_goes_to_its_file(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path;"
        "from ditaccel.batch.workers.ray_engine import print_into;"
        "print('before', flush=True); print_into(Path(sys.argv[1])); print('one', flush=True);"
        "print('two', file=sys.stderr); os.system('echo three')"
    )
    log = tmp_path / "logs" / "worker.log"
    command = [sys.executable, "-P", "-c", code, str(log)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("before\n", "")
    assert log.read_text().split() == ["one", "two", "three"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three processes' worth of cluster on this machine, on the loopback interface alone."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    ray.init(
        num_cpus=4,
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        log_to_driver=True,  # as users have it who start Ray themselves
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


@slow
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


@slow
def test_what_workers_print_is_in_their_logs_and_not_on_the_terminal(
    cluster: Any, generate: Callable[..., Any], jobs: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "ray"
    options = ("--engine", "ray", "--workers", "2", "--config", "lite_attention")
    code, _, noted = generate(jobs(4, [{"seed": "x"}]), *options, out=out)
    assert code == 3
    assert [line for line in noted.splitlines() if not line.startswith("generate: ")] == []
    logs = [path.read_text() for path in (out / "logs").glob("*.log")]
    assert logs and all("too short for this attention method" in text for text in logs)
