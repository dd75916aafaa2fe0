"""A job's folder that goes away, is moved or may not be written any more, while the job runs."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from job_folders import assert_tidy, outputs

from ditaccel.batch.folder import JobFolder
from ditaccel.batch.overlap import Seam
from ditaccel.batch.workers import claims as claims_module
from ditaccel.batch.workers import local
from ditaccel.cli import main

Generate = Callable[..., tuple[int, str, str]]
Jobs = Callable[..., Path]


def when(patch: pytest.MonkeyPatch, count: int, act: Callable[[], Any]) -> None:
    """Do something just before the `count`-th item is denoised."""
    plain, seen = Seam.call, []

    def call(self: Seam, arguments: dict[str, Any], **options: Any) -> Any:
        seen.append(1)
        if len(seen) == count:
            try:
                act()
            except BaseException:
                self.baton.release()  # as a call that raises does
                raise
        return plain(self, arguments, **options)

    patch.setattr(Seam, "call", call)


def remove(folder: Path) -> None:
    """Until it is gone: others may still write into it."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


def bury(out: Path) -> None:
    """The first command's process has ended, elsewhere than in these tests: so has its worker."""
    shutil.rmtree(out / "workers", ignore_errors=True)


def assert_one_line(noted: str, words: str = "") -> None:
    # (what goes on beside may fail of its own row before the job ends)
    said = [n for n in noted.splitlines() if "warning:" not in n and " failed: " not in n]
    assert "Traceback" not in noted and len(said) == 1, noted
    assert said[0].startswith("ditaccel: error:") and words in said[0]


@pytest.mark.parametrize("how", ["removed", "moved"])
def test_a_folder_that_goes_away_ends_the_job_in_one_line(
    generate: Generate, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    path, out, there = jobs(6), tmp_path / "out", tmp_path / "there"
    with monkeypatch.context() as patch:
        act = (lambda: remove(out)) if how == "removed" else (lambda: out.rename(there))
        when(patch, 3, act)
        code, printed, noted = generate(path)
    assert code == 2 and printed == ""
    assert_one_line(noted, "is gone (moved or removed")
    assert not out.exists(), "nothing is made anew where the folder was"
    if how == "moved":
        bury(there)
        made = len(outputs(there))
        code, printed, _ = generate(path, out=there)
        assert code == 0 and "6 of 6 items done" in printed and made >= 1
        assert_tidy(there)


@pytest.mark.parametrize("part", ["claims", "workers", "results", "outputs", "failed", "shards"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_part_of_the_folder_that_goes_away_is_survived_or_one_line(
    generate: Generate,
    jobs: Jobs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    fails: bool,
) -> None:
    path, out = jobs(6), tmp_path / "out"

    def act() -> None:
        remove(out / part)
        if fails:
            raise ValueError("this item fails, and its record has no place")

    with monkeypatch.context() as patch:
        when(patch, 3, act)
        code, _, noted = generate(path)
    assert "Traceback" not in noted and code in (0, 2, 3)
    if code == 2:
        assert_one_line(noted)
    bury(out)
    code, printed, _ = generate(path, "--retry-failed")
    assert code == 0 and "6 of 6 items done" in printed
    assert_tidy(out)


REFUSALS = [
    (os, "scandir"),
    (os, "replace"),
    (os, "open"),
    (Path, "mkdir"),
    (Path, "unlink"),
    (Path, "open"),
    (Path, "touch"),
    (Path, "read_text"),
    (Path, "iterdir"),
    (os, "fsync"),
]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize(("where", "name"), REFUSALS, ids=[name for _, name in REFUSALS])
def test_whatever_the_system_refuses_from_some_moment_on_is_one_line(
    generate: Generate,
    jobs: Jobs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    code: int,
) -> None:
    path, out = jobs(4), tmp_path / "out"
    plain = getattr(where, name)

    def refuse(first: Any = ".", *arguments: Any, **options: Any) -> Any:
        inside = isinstance(first, int) or str(first).startswith(str(out))
        if (inside and name != "fsync") or (name == "fsync"):
            raise OSError(code, os.strerror(code), None if isinstance(first, int) else str(first))
        return plain(first, *arguments, **options)

    with monkeypatch.context() as patch:
        when(patch, 2, lambda: patch.setattr(where, name, refuse))
        status, _, noted = generate(path)
    assert "Traceback" not in noted and status in (0, 2)
    if status == 2:
        assert_one_line(noted, os.strerror(code))
    bury(out)
    status, printed, _ = generate(path)
    assert status == 0 and "4 of 4 items done" in printed
    assert {"claims", "outputs"} <= set(os.listdir(out))


def test_the_heartbeat_says_that_the_folder_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    monkeypatch.setattr(claims_module, "BEAT", 0.01)
    folder = JobFolder(tmp_path / "out")
    folder.make()
    said: list[str] = []
    heard = threading.Event()
    claims = claims_module.Claims(
        folder, "run", on_lost=lambda line: (said.append(line), heard.set())
    )
    folder.root.rename(tmp_path / "elsewhere")  # at once: a heartbeat may come at any moment
    assert heard.wait(30)
    claims.close()
    assert "is gone (moved or removed" in said[0] and not folder.root.exists()


@pytest.mark.skipif(not hasattr(os, "fork") or os.getuid() != 0, reason="needs to become nobody")
@pytest.mark.parametrize("part", ["", "outputs", "claims", "workers", "results"])
def test_a_folder_that_may_not_be_written_any_more(
    model: Path, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Permissions do not bind root: a child gives its rights up first."""
    path, out, log = jobs(5), tmp_path / "home" / "out", tmp_path / "home" / "log"
    for folder in (model, *model.rglob("*"), path):
        folder.chmod(folder.stat().st_mode | (stat.S_IRWXO if folder.is_dir() else stat.S_IROTH))
    for folder in (*tmp_path.parents, *model.parents):
        if folder.owner() == "root" and str(folder).startswith("/tmp/"):
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    tmp_path.chmod(0o755)
    out.parent.mkdir()
    os.chown(out.parent, 65534, 65534)
    command = ["generate", str(model), "--jobs", str(path), "--out", str(out), "--workers", "1"]

    def run() -> tuple[int, str]:
        child = os.fork()
        if child == 0:
            status = 99
            try:
                os.setgid(65534)
                os.setuid(65534)
                handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(handle, 1)
                os.dup2(handle, 2)
                import sys

                sys.stdout = sys.stderr = os.fdopen(handle, "w", buffering=1)
                status = main(command)
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), log.read_text()

    with monkeypatch.context() as patch:
        when(patch, 3, lambda: (out / part).chmod(0o500))
        code, noted = run()
    if part in ("workers", "results"):  # what this worker needs is there, and open
        assert code == 0 and "Traceback" not in noted
    else:
        assert code == 2
        assert_one_line(noted, "Permission denied")
    (out / part).chmod(0o700)
    assert run()[0] == 0
    assert_tidy(out)


def test_workers_of_a_folder_that_goes_away_say_one_line(
    jobs: Jobs, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    from forked import ForkedWorker

    monkeypatch.setattr(local, "spawn", lambda a, e: ForkedWorker(a, e))
    out = tmp_path / "out"
    when(monkeypatch, 5, lambda: remove(out))
    command = ["generate", str(model), "--jobs", str(jobs(40)), "--out", str(out)]
    assert main([*command, "--workers", "2"]) == 2
    assert_one_line(capfd.readouterr().err, "is gone")
    assert not (out / "outputs").exists()
