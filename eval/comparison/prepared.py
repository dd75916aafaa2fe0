"""A comparison that is ready to run: the model opened, its rows and samples known and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ditaccel.io.progress import Progress

from .. import specs
from ..judge import Judge
from ..options import Options
from ..specs import RunConfig
from ..store import Store
from . import plan
from .comparison import Comparison
from .rows import Rows
from .sampler import Sample, make_samples
from .setup import describe
from .subject import Subject, open_subject


@dataclass(frozen=True)
class Asked:
    """What a comparison is asked for, as values.

    Attributes:
        model: folder or Hub id of a diffusers pipeline, or a loaded pipeline.
        configs: texts of rows.
        prompts: or class names.
        seeds: of the noise.
        options: how to run.
    """

    model: Any
    configs: Sequence[str]
    prompts: Sequence[str]
    seeds: Sequence[int]
    options: Options

    @property
    def samples(self) -> list[Sample]:
        """Every prompt with every seed."""
        return make_samples(list(self.prompts), list(self.seeds))


@dataclass(frozen=True)
class Prepared:
    """A comparison that is ready to run.

    Attributes:
        asked: for what.
        subject: the opened model.
        rows: runs the rows.
        configs: the rows, dense first.
        judge: compares pictures with dense's.
        setup: content of `run.json`.
    """

    asked: Asked
    subject: Subject
    rows: Rows
    configs: list[RunConfig]
    judge: Judge
    setup: dict[str, Any]

    def size(self, left: int) -> str:
        """How many generations there are, and how many of them are left."""
        kind = "clips" if "video" in self.subject.sheet.task else "pictures"
        prompts, seeds = len(self.asked.prompts), len(self.asked.seeds)
        return plan.size_line(prompts, seeds, len(self.configs), left, kind)

    def comparison(self, store: Store, progress: Progress, workers: int = 1) -> Comparison:
        """What runs it.

        Args:
            store: the folder.
            progress: what the user sees.
            workers: that share the samples on this machine.
        """
        stamp = {key: self.setup[key] for key in ("versions", "commit", "device")}
        if workers > 1:
            stamp["workers"] = workers
        options, samples = self.asked.options, self.asked.samples
        return Comparison(
            store, self.rows, self.configs, samples, self.judge, progress, stamp,
            options.pairs, workers,
        )  # fmt: skip


def prepare(asked: Asked, device: str | None = None) -> Prepared:
    """Open the model and check everything that can be checked before a generation.

    Args:
        asked: for what.
        device: in place of the options'.

    Raises:
        ConfigError: an unusable config text.
        UnsupportedError: a method of this plugin cannot run on the model.
        UsageError: an unusable model, prompt or weights file.
    """
    options = asked.options if device is None else replace(asked.options, device=device)
    subject = open_subject(asked.model, options)
    sampler = subject.sampler(options, asked.prompts)
    rows = Rows(sampler, subject.for_presets)
    chosen = rows.told(
        specs.build(list(asked.configs), sampler.steps, options.fewer, rows.validate)
    )
    judge = Judge(options, subject.sheet, subject.pipe if sampler.by_class else None)
    setup = describe(subject, sampler, chosen, asked.prompts, asked.seeds, judge, options)
    return Prepared(asked, subject, rows, chosen, judge, setup)
