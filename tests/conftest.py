"""Session-wide test rules: no network, one thread, a fixed seed."""

import importlib.util
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import rotation
from hypothesis import HealthCheck, settings

# Before anything imports a Hub client: these are read at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# A busy machine is not a fault.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


class NetworkBlockedError(OSError):
    """A test tried to reach another machine."""


def _is_loopback(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        return ip_address(str(host)).is_loopback
    except ValueError:
        return False


def _refuse(host: object) -> None:
    raise NetworkBlockedError(
        f"tests must not reach the network, but this one tried {host!r}; build what it needs "
        "offline (see CONTRIBUTING.md)"
    )


def _block_network() -> None:
    connect, connect_ex, sendto = (
        socket.socket.connect,
        socket.socket.connect_ex,
        socket.socket.sendto,
    )
    getaddrinfo = socket.getaddrinfo

    def check(sock: socket.socket, address: Any) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            _refuse(address[0])

    def guarded_connect(self: socket.socket, address: Any) -> None:
        check(self, address)
        return connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        check(self, address)
        return connect_ex(self, address)

    def guarded_sendto(self: socket.socket, data: Any, *rest: Any) -> int:
        check(self, rest[-1])
        return sendto(self, data, *rest)

    def guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_loopback(host):
            _refuse(host)
        return getaddrinfo(host, *args, **kwargs)

    socket.socket.connect = guarded_connect  # type: ignore[method-assign]
    socket.socket.connect_ex = guarded_connect_ex  # type: ignore[method-assign]
    socket.socket.sendto = guarded_sendto  # type: ignore[method-assign,assignment]
    socket.getaddrinfo = guarded_getaddrinfo


def _own_progress_bars() -> None:
    """Give tqdm a lock of this process alone.

    Its own lock is shared with forked children, so one that is killed while it draws a bar would
    hold the lock for ever, and every later run would wait for it.
    """
    from tqdm.std import tqdm

    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0  # no thread that might hold it at a fork


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options for running the slow tests in turns (`support/rotation.py`)."""
    group = parser.getgroup("ditaccel")
    group.addoption("--rotate", metavar="COMMIT", help="an eighth of the tests, chosen by a hash")
    group.addoption("--minutes", type=float, help="start no test after this time")


def pytest_configure(config: pytest.Config) -> None:
    """Block the network before any test module is imported, in every xdist worker too."""
    _block_network()
    _own_progress_bars()
    if config.getoption("--minutes") is not None:
        rotation.set_deadline(config.getoption("--minutes"))


@pytest.hookimpl(trylast=True)  # after -m has deselected what is not meant
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests whose turn it is."""
    commit = config.getoption("--rotate")
    if commit is None:
        return
    by_name = {item.nodeid: item for item in items}
    kept = rotation.chosen(commit, by_name)
    config.hook.pytest_deselected(items=[by_name[n] for n in by_name.keys() - set(kept)])
    items[:] = [by_name[name] for name in kept]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what would start too late."""
    if item.config.getoption("--minutes") is not None and rotation.time_is_up():
        pytest.skip("its time is up: another commit runs it")


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    import numpy as np
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    yield


@pytest.fixture(scope="session")
def write_evaluation() -> Callable[..., Path]:
    """`synthetic.write_evaluation`: an evaluation folder without a model."""
    path = Path(__file__).parent / "eval" / "synthetic.py"
    spec = importlib.util.spec_from_file_location("synthetic_evaluation", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_evaluation
