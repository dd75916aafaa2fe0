"""Dense runs and results on disk: shared between targets, and found again after a kill.

A dense run belongs to a model, a scheduler, a call and a seed, and to nothing else; so it serves
every target, and every later search that makes the same call. Without a folder of the user's all
lies in a temporary one.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ...config import AccelerationConfig, to_dict, what_decides
from ...errors import UsageError
from ...io import given
from ...io.checked import items, number, read_records, record, table, text
from ...io.files import append_line, mend_lines, unwritten

_LINE = record(
    {"run": text, "config": text, "levels": table(items(number())), "seconds": number(0)}
)
_AGAIN = "delete that line to have the run made again"


def name_of(*parts: object) -> str:
    """A short name of anything that has a complete `repr`."""
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()[:16]


def config_name(config: AccelerationConfig) -> str:
    """A name of what a config does, whatever it is called and was tuned on."""
    return name_of(what_decides(to_dict(config)))


@dataclass(frozen=True)
class Result:
    """What one generation with a config gave.

    Attributes:
        levels: metric -> one level per sample.
        seconds: that it took, see `joint.recording.clock`.
    """

    levels: dict[str, list[float]]
    seconds: float


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file.

    Raises:
        UsageError: it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as saved:
            return {key: saved[key] for key in saved.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UsageError(f"{path} cannot be read ({error}); delete it") from None


class RunStore:
    """What was run.

    Args:
        folder: to keep it in, made if need be; None for a temporary one.

    Raises:
        UsageError: the folder cannot be made or its content cannot be read.
    """

    def __init__(self, folder: str | PathLike[str] | None = None) -> None:
        self._temporary = None
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="ditaccel-tune-")
            folder = self._temporary.name
        self.folder = given.path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritten(self.folder, error) from None
        self._results: dict[tuple[str, str], Result] = {}
        path = self._lines
        mend_lines(path)
        for line in read_records(path, _LINE, _AGAIN):
            found = Result(dict(line["levels"]), float(line["seconds"]))
            self._add(line["run"], line["config"], found)

    @property
    def _lines(self) -> Path:
        return self.folder / "results.jsonl"

    def arrays(self, name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Arrays that were saved under a name, else those that `make` makes, which are saved.

        Raises:
            UsageError: the disk is full, or the file is damaged.
        """
        path = self.folder / f"{name}.npz"
        if path.exists():
            return read_arrays(path)
        made = make()
        draft = path.with_suffix(".tmp")
        try:
            with draft.open("wb") as file:
                np.savez(file, **made)  # type: ignore[arg-type]
            draft.replace(path)
        except OSError as error:
            raise unwritten(path, error) from None
        return made

    def result(self, run: str, config: str, metrics: set[str]) -> Result | None:
        """What a config gave in a run, where all of some metrics were measured.

        Args:
            run: name of the dense run.
            config: name of the config.
            metrics: that are wanted.
        """
        found = self._results.get((run, config))
        return found if found is not None and metrics <= found.levels.keys() else None

    def add(self, run: str, config: str, result: Result) -> None:
        """Remember a result.

        Raises:
            UsageError: the disk is full or not writable.
        """
        line: dict[str, Any] = {"run": run, "config": config}
        append_line(self._lines, {**line, "levels": result.levels, "seconds": result.seconds})
        self._add(run, config, result)

    def _add(self, run: str, config: str, result: Result) -> None:
        before = self._results.get((run, config))
        levels = {**(before.levels if before else {}), **result.levels}
        self._results[run, config] = Result(levels, result.seconds)
