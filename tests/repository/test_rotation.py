"""Slow tests in turns: every test has its turn, and the same commit always runs the same ones."""

import subprocess
import sys
from pathlib import Path

import pytest
import rotation

ROOT = Path(__file__).resolve().parents[2]
NAMES = [f"tests/a.py::test_{i}" for i in range(400)]


def test_eight_commits_in_turn_run_everything_once() -> None:
    turns = [rotation.chosen(f"{16 + i:x}", NAMES) for i in range(rotation.SHARES)]
    assert sorted(name for turn in turns for name in turn) == sorted(NAMES)
    assert all(30 < len(turn) < 75 for turn in turns)


def test_a_commit_has_its_own_order_and_always_the_same() -> None:
    first, again, other = (rotation.chosen(c, NAMES) for c in ("a0", "a0", "a8"))
    assert first == again
    assert set(first) == set(other) and first != other


def test_new_tests_move_no_other() -> None:
    more = [*NAMES, "tests/b.py::test_new"]
    assert set(rotation.chosen("a0", NAMES)) == set(rotation.chosen("a0", more)) & set(NAMES)


def test_what_is_no_hash_is_refused() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        rotation.chosen("main", NAMES)


def _run(folder: Path, *options: str) -> str:
    command = [sys.executable, "-P", "-m", "pytest", "--import-mode=importlib", "-q", "-rs"]
    command += ["-p", "no:cacheprovider", "-m", "slow", *options, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False).stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\nmarkers = slow\npythonpath = {ROOT / 'tests' / 'support'}\n"
    )
    (tmp_path / "test_many.py").write_text(
        "import pytest\n\n"
        "@pytest.mark.parametrize('n', range(16))\n@pytest.mark.slow\ndef test_slow(n): pass\n\n"
        "def test_quick(): assert False\n"
    )
    return tmp_path


def test_the_options_run_a_share_of_the_slow_tests_and_stop_in_time(folder: Path) -> None:
    names = [f"test_many.py::test_slow[{n}]" for n in range(16)]
    expected = len(rotation.chosen("a0", names))
    assert 0 < expected < 16
    assert f"{expected} passed" in _run(folder, "--rotate", "a0")
    late = _run(folder, "--rotate", "a0", "--minutes", "0")
    assert f"{expected} skipped" in late and "its time is up" in late
