"""`ditaccel.generate`: the pictures or videos of many rows, from Python."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..api import is_accelerated
from ..config.specs import text_of
from ..errors import ConfigError, DitaccelError, UsageError
from ..io import given
from ..io.arguments import AUTO
from ..io.files import read_lines
from ..io.models import execution_device
from .arguments import add_arguments
from .command import make_job, plan_job
from .facts import DENSE, facts_of
from .folder import RESULTS, JobFolder
from .jobs import RawRow, read_rows

Rows = str | os.PathLike[str] | Sequence[str | Mapping[str, Any]]


@dataclass(frozen=True)
class Generated:
    """What `generate` has made.

    Attributes:
        folder: of the job; `ditaccel report FOLDER` makes a gallery of it.
        made: number of items that this call made.
        done: number of items that are there, those of earlier calls included.
        failed: number of items that cannot be made.
        summary: figures of the job, and `failures` with a reason each.
        results: one mapping per item: its row, prompt, seed, files, seconds and more.
    """

    folder: Path
    made: int
    done: int
    failed: int
    summary: dict[str, Any]
    results: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        return f"{self.done} done, {self.made} of them now, {self.failed} failed: {self.folder}"


def generate(
    model: Any,
    rows: Rows,
    out: str | os.PathLike[str],
    config: Any = "balanced",
    *,
    seeds: int | Iterable[int] = 0,
    call: Mapping[str, Any] | None = None,
    **options: Any,
) -> Generated:
    """Make a picture or video of each row, and write it to a folder with how it was made.

    The same as the command `ditaccel generate`. Called again with the same folder, it makes what is
    missing.

    ```python
    made = ditaccel.generate(pipe, ["a red circle", "a blue square"], "out", seeds=[0, 1])
    made = ditaccel.generate("path/to/model", "jobs.csv", "out", "fast", workers=4)
    ```

    Args:
        model: a loaded pipeline, or the folder or Hub id of one, which each worker then loads.
        rows: a job file (txt, csv, tsv, jsonl, parquet), or prompts, or mappings with its columns.
        out: folder of the job.
        config: as in `accelerate`, for rows without one of their own; None for dense.
        seeds: a row without a seed is made once with each.
        call: arguments of the pipeline's call for rows that do not set them.
        **options: the other options of the command by name: `workers`, `batch`, `save`, `limit`,
            `retry_failed`, `quiet`, ….

    Raises:
        ConfigError: an unknown option or config.
        UsageError: unusable rows, model or folder.
        KeyboardInterrupt: it was interrupted; what was finished is kept.
    """
    loaded = None if isinstance(model, (str, os.PathLike)) else model
    args = _arguments("" if loaded is not None else os.fspath(model), out, options)
    args.config = DENSE if config is None else text_of(config)
    args.seeds = given.seeds_of((seeds,) if isinstance(seeds, int) else seeds)
    args.call = dict(call or {})

    def note(line: str) -> None:
        if not args.quiet:
            print(f"generate: {given.one_line(line)}", file=sys.stderr, flush=True)

    facts = None
    if loaded is not None:
        facts = facts_of(loaded)
        _work_here(args, loaded, options)
    found, base = _rows(rows, note)
    args.jobs = rows if isinstance(rows, (str, os.PathLike)) else "rows given in Python"
    planned = plan_job(args, found, base, note, facts)
    summary, interrupted = make_job(args, planned, note, loaded)
    if interrupted:
        raise KeyboardInterrupt
    folder = JobFolder(args.out).root
    results = tuple(read_lines(folder / RESULTS))
    return Generated(folder, summary["made"], summary["done"], summary["failed"], summary, results)


def _arguments(
    model: str, out: str | os.PathLike[str], options: Mapping[str, Any]
) -> argparse.Namespace:
    """The options of the command, those that were not given at their defaults."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["model", "--jobs", "rows", "--out", os.fspath(out)])
    actions = {action.dest: action for action in parser._actions}
    known = sorted(set(vars(args)) - {"model", "jobs", "out", "config", "dry_run", "json"})
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"generate has no option {name!r}{given.suggest(name, known)}")
        setattr(args, name, _read(actions[name], name, value))
    args.model = model
    return args


def _read(action: argparse.Action, name: str, value: Any) -> Any:
    """An option's value, checked as the command checks its text.

    Raises:
        ConfigError: the command would refuse it, too.
    """
    if value is None:
        return action.default
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ConfigError(f"is {value!r}; it must be True or False", name)
        return value
    if isinstance(action.default, list):  # an option that may be repeated
        each = [value] if isinstance(value, str) else list(value)
        return [_parsed(action, name, str(one)) for one in each]
    listed = isinstance(value, (list, tuple))
    return _parsed(action, name, ",".join(map(str, value)) if listed else str(value))


def _parsed(action: argparse.Action, name: str, text: str) -> Any:
    try:
        found = action.type(text) if callable(action.type) else text
    except (DitaccelError, argparse.ArgumentTypeError, ValueError) as error:
        said = str(error).removeprefix(action.option_strings[0]).strip()
        raise ConfigError(f"is {text!r}: {said}", name) from None
    if action.choices is not None and found not in action.choices:
        raise ConfigError(f"is {text!r}; it must be one of: {', '.join(action.choices)}", name)
    return found


def _work_here(args: argparse.Namespace, pipe: Any, options: Mapping[str, Any]) -> None:
    """A loaded pipeline stays in this process, on its device and in its dtype."""
    for name in ("workers", "device", "dtype", "pipeline", "engine", "scheduler"):
        if name in options:
            raise UsageError(
                f"{name} is for a model that workers load; a loaded pipeline is used as it is"
            )
    if is_accelerated(pipe):
        raise UsageError(
            "generate accelerates the pipeline itself, by its config; call ditaccel.restore(pipe) "
            "first"
        )
    args.workers, args.device, args.dtype = 1, execution_device(pipe).type, AUTO
    args.threads = args.threads or torch.get_num_threads()


def _rows(rows: Rows, note: Any) -> tuple[list[RawRow], Path]:
    """The rows, and the folder that paths in them are relative to."""
    if isinstance(rows, (str, os.PathLike)):
        return read_rows(os.fspath(rows), note), given.path(rows).resolve().parent
    found = []
    for number, row in enumerate(rows, 1):
        values = {"prompt": row} if isinstance(row, str) else row
        if not isinstance(values, Mapping):
            raise UsageError(
                f"row {number} is of type {type(row).__name__}; give a prompt, or a mapping such "
                "as {'prompt': 'a red circle', 'seed': 1}"
            )
        plain = json.loads(json.dumps(dict(values), default=str))
        found.append(RawRow(number, {k: v for k, v in plain.items() if v is not None}))
    if not found:
        raise UsageError("there is no row to make; give at least one prompt")
    return found, Path.cwd()
