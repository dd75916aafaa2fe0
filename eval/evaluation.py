"""`ditaccel.evaluate`: configs compared with dense runs, from Python."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ditaccel.config.specs import text_of
from ditaccel.errors import ConfigError
from ditaccel.io.files import read_json
from ditaccel.io.given import suggest
from ditaccel.warning import warn

from . import runs
from .options import Options


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` has measured.

    Attributes:
        folder: of the run.
        summary: figures per config, verdicts, failures: the content of `summary.json`.
        page: the report as a page, None where it was not asked for.
    """

    folder: Path
    summary: dict[str, Any]
    page: Path | None = None

    @property
    def configs(self) -> dict[str, dict[str, Any]]:
        """Figures of each config by its name: `dense`, `balanced`, `reuse-interval-2`, …."""
        return dict(self.summary["configs"])

    @property
    def failures(self) -> dict[str, str]:
        """Why a config could not run, by its name: the first of its samples that failed."""
        found: dict[str, str] = {}
        for each in self.summary["failures"]:
            found.setdefault(each["config"], each["error"])
        return found

    def __str__(self) -> str:
        lines = [str(verdict["text"]) for verdict in self.summary["verdicts"]]
        lines += [f"failed: {name}: {error}" for name, error in self.failures.items()]
        return "\n".join([*lines, f"results: {self.page or self.folder}"])


def evaluate(
    model: Any,
    configs: Any,
    prompts: str | Sequence[str],
    seeds: int | Iterable[int],
    out: str | os.PathLike[str],
    *,
    page: bool = True,
    **options: Any,
) -> Evaluation:
    """Measure what configs save and what they cost in quality, compared with dense runs.

    The same as the command `ditaccel eval`. Called again with the same folder, it resumes.

    ```python
    found = ditaccel.evaluate(pipe, ["balanced", TaylorSeerConfig(interval=3)],
                              ["a red circle"], seeds=[0, 1], out="run", steps=20)
    print(found)
    found.configs["balanced"]["speedup"]
    ```

    Args:
        model: a loaded pipeline, or the folder or Hub id of one.
        configs: as in `accelerate`, one or several; also `steps:N` (fewer steps) and `peer/NAME`
            (another project's cache).
        prompts: a prompt or class name, or several.
        seeds: of the noise, one or several; each prompt is made with each.
        out: folder of the run.
        page: whether to write the report as a page.
        **options: see `ditaccel.eval.options.Options`: `steps`, `call`, `device`, `pairs`, ….

    Raises:
        ConfigError: an unknown option or config.
        UnsupportedError: a method cannot run on the model.
        UsageError: an unusable model, prompt or folder.
    """
    known = [field.name for field in fields(Options)]
    for name in options:
        if name not in known:
            raise ConfigError(f"evaluate has no option {name!r}{suggest(name, known)}")
    listed = list(configs) if isinstance(configs, (list, tuple)) else [configs]
    texts = [text_of(each) for each in listed]
    where = os.fspath(model) if isinstance(model, os.PathLike) else model
    threads = torch.get_num_threads()
    try:
        folder = runs.evaluate(where, texts, prompts, seeds, Path(out), Options(**options))
    finally:
        torch.set_num_threads(threads)
    written = None
    if page:
        from .report.page import write_report

        written = write_report(folder)
    found = Evaluation(folder, read_json(folder / "summary.json"), written)
    for name, error in found.failures.items():
        warn(f"{name} failed: {error}")
    return found
