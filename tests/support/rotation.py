"""A share of the slow tests per commit, so that all of them run every few commits.

`--rotate COMMIT` keeps an eighth of the tests, chosen by the commit's hash, and shuffles them by
it; `--minutes N` starts no test after that time. Which eighth a test belongs to depends on its
name alone, so tests that were added or removed move no other.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterable

SHARES = 8
# Set once by the process that starts the run; workers of pytest-xdist inherit it.
_DEADLINE = "DITACCEL_TESTS_DEADLINE"


def share_of(name: str) -> int:
    """Which share a test belongs to, from 0."""
    return zlib.crc32(name.encode()) % SHARES


def chosen(commit: str, names: Iterable[str]) -> list[str]:
    """Names of the tests that a commit runs, in its order.

    Args:
        commit: its hash, hexadecimal.
        names: of all tests.

    Raises:
        ValueError: the commit is not a hexadecimal number.
    """
    turn = int(commit, 16) % SHARES
    own = [name for name in names if share_of(name) == turn]
    return sorted(own, key=lambda name: zlib.crc32(f"{commit} {name}".encode()))


def set_deadline(minutes: float) -> None:
    """Let the time run from now on, unless it does already."""
    os.environ.setdefault(_DEADLINE, str(time.time() + 60.0 * minutes))


def time_is_up() -> bool:
    """Whether no further test is to be started."""
    return _DEADLINE in os.environ and time.time() > float(os.environ[_DEADLINE])
