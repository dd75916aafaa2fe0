"""The folder of a run: append-only lines, atomic files, and the way back into a killed run."""

from __future__ import annotations

import fcntl
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ditaccel.errors import UsageError
from ditaccel.io import given
from ditaccel.io.checked import Check
from ditaccel.io.differences import differences, told
from ditaccel.io.files import (
    DRAFT,
    append_line,
    append_lines,
    mend_lines,
    plain,
    write_atomically,
    write_json,
)

from .records import GENERATION, RESULT, read_all, read_run

RUN, JOURNAL, RESULTS = "run.json", "generations.jsonl", "results.jsonl"
FAILURES, WARMUPS, SUMMARY = "failures.jsonl", "warmups.jsonl", "summary.json"
# No sample of ours comes near; a changed file of some kilobytes may claim to be any size.
_LARGEST = 4 << 30
# What must not change between the parts of one run: their timings and pictures are compared.
IDENTITY = (
    "schema",
    "fingerprint",
    "task",
    "call",
    "configs",
    "prompts",
    "seeds",
    "device",
    "versions",
    "dtype",
    "pipeline",
    "scheduler",
    "merged",
)


def _keyed(path: Path, check: Check) -> dict[tuple[str, str], dict[str, Any]]:
    return {(line["config"], line["sample"]): line for line in read_all(path, check)}


class Store:
    """The folder of one run, locked against a second process.

    Args:
        folder: where the run lives; made if it is missing.
        setup: content of `run.json`.

    Raises:
        UsageError: not writable, in use, damaged, or the run of another setup.
    """

    def __init__(self, folder: str | Path, setup: dict[str, Any]) -> None:
        self.folder = given.path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Not removed on close: a lock on a deleted name would guard nothing.
            self._lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise UsageError(f"{self.folder}: not writable ({error.strerror})", "out") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            line = f"{self.folder}: another evaluation is writing there"
            raise UsageError(line, "out") from error
        try:
            self._open(plain(setup))
        except BaseException:
            self._lock.close()
            raise

    def _open(self, setup: dict[str, Any]) -> None:
        path = self.folder / RUN
        if path.exists():
            before = read_run(path)
            changed: list[str] = []
            for key in IDENTITY:
                own, there = setup.get(key), before.get(key)
                long = isinstance(own, list) and own != there
                changed += [key] if long else differences({key: own}, {key: there})
            if changed:
                raise UsageError(
                    f"{self.folder} holds the run of another setup (different: {told(changed)}); "
                    "choose another folder, or repeat that run's options",
                    "out",
                )
        elif any(self.folder.glob("*.jsonl")):
            raise UsageError(
                f"{self.folder} holds results but no {RUN}: choose another folder", "out"
            )
        write_json(path, setup)
        for draft in self.folder.rglob(f".*{DRAFT}"):
            draft.unlink()  # a killed run's; the lock says that nobody writes it
        for name in (JOURNAL, RESULTS, FAILURES, WARMUPS):
            mend_lines(self.folder / name)
        self.generations = _keyed(self.folder / JOURNAL, GENERATION)
        self.results = _keyed(self.folder / RESULTS, RESULT)

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Add one line to a file, on the disk before this returns."""
        append_line(self.folder / name, line)

    def add_generation(self, line: dict[str, Any], frames: np.ndarray) -> None:
        """Keep one generation: its frames, then its line."""
        write_atomically(
            self.folder / line["media"], lambda file: np.savez_compressed(file, frames=frames)
        )
        self.append(JOURNAL, line)
        self.generations[line["config"], line["sample"]] = plain(line)

    def take(self, lines: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]]) -> None:
        """Keep a sample that was made elsewhere; its frames are in `media/` already.

        Its rows belong together, so a kill leaves all of them or none.

        Args:
            lines: of its generations.
            results: of those that were judged.
        """
        append_lines(self.folder / JOURNAL, lines)
        append_lines(self.folder / RESULTS, results)
        for known, found in ((self.generations, lines), (self.results, results)):
            known.update({(line["config"], line["sample"]): plain(line) for line in found})

    def add_result(self, line: dict[str, Any]) -> None:
        """Keep one judged generation."""
        self.append(RESULTS, line)
        self.results[line["config"], line["sample"]] = plain(line)

    def is_done(self, config: str, sample: str) -> bool:
        """Whether a generation is there, line and frames."""
        line = self.generations.get((config, sample))
        return line is not None and (self.folder / line["media"]).is_file()

    def frames(self, config: str, sample: str) -> np.ndarray:
        """The frames (F, H, W, 3) uint8 of a generation.

        Raises:
            UsageError: the file is damaged.
        """
        return load_frames(self.folder / self.generations[config, sample]["media"])

    def close(self) -> None:
        """Give the lock back."""
        self._lock.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load_frames(path: Path) -> np.ndarray:
    """The frames (F, H, W, 3) uint8 of a media file.

    Raises:
        UsageError: missing or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = archive.getinfo("frames.npy").file_size
        if size <= _LARGEST:
            with np.load(path, allow_pickle=False) as data:
                frames: np.ndarray = data["frames"]
    except Exception as error:
        # zipfile, zlib and numpy each have their own idea of a broken file.
        raise UsageError(f"{path} is damaged; delete it and run the same command again") from error
    if size > _LARGEST:
        raise UsageError(
            f"{path} holds {size >> 20} MiB, more than the {_LARGEST >> 20} MiB that frames may "
            "take; delete it and run the same command again"
        )
    return frames
