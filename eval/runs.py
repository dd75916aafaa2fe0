"""Paired runs: every row on every sample, same seed and noise, in turns, resumable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ditaccel.errors import UsageError
from ditaccel.io.progress import Progress

from . import specs
from .comparison import plan
from .comparison.comparison import Comparison
from .comparison.rows import Rows
from .comparison.sampler import make_samples
from .comparison.setup import describe
from .comparison.subject import open_subject
from .judge import Judge
from .options import Options
from .store import Store
from .summary.summarise import write_summary


def evaluate(
    model: str | Path | Any,
    configs: str | Sequence[str],
    prompts: str | Sequence[str],
    seeds: int | Iterable[int],
    out: str | Path,
    options: Options | None = None,
) -> Path:
    """Compare configs with dense runs of one model, and write the results to a folder.

    This is the whole of `ditaccel eval` but for its report, and takes values only. Calling it again
    with the same folder resumes a run that was interrupted.

    Args:
        model: folder or Hub id of a diffusers pipeline, or a loaded pipeline.
        configs: a text as in `specs.FORMS`, or several.
        prompts: a prompt or class name, or several.
        seeds: of the noise, one or several; each prompt is made with each.
        out: folder of the run.
        options: how to run, by default as `Options()` says.

    Returns:
        The folder; it holds `run.json`, `results.jsonl`, `summary.json` and `media/`.
        `report.page.write_report` makes a page of it.

    Raises:
        ConfigError: an unusable config text.
        UnsupportedError: a method of this plugin cannot run on the model.
        UsageError: an unusable model, prompt, folder or weights file.
    """
    options = options or Options()
    texts, prompts = _several(configs), _several(prompts)
    seeds = [seeds] if isinstance(seeds, int) else list(dict.fromkeys(int(s) for s in seeds))
    if not prompts or not seeds:
        raise UsageError("nothing to generate: give at least one prompt and one seed")
    subject = open_subject(model, options)
    sampler = subject.sampler(options, prompts)
    rows = Rows(sampler, subject.for_presets)
    chosen = rows.told(specs.build(texts, sampler.steps, options.fewer, rows.validate))
    judge = Judge(options, subject.sheet, subject.pipe if sampler.by_class else None)
    setup = describe(subject, sampler, chosen, prompts, seeds, judge, options)
    samples = make_samples(prompts, seeds)
    with Store(out, setup) as store:
        left = sum(not store.is_done(row.id, s.id) for row in chosen for s in samples)
        total = len(chosen) * len(samples)
        progress = Progress(total, total - left, options.quiet)
        kind = "clips" if "video" in subject.sheet.task else "pictures"
        size = plan.size_line(len(prompts), len(seeds), len(chosen), left, kind)
        stamp = {key: setup[key] for key in ("versions", "commit", "device")}
        run = Comparison(store, rows, chosen, samples, judge, progress, stamp, options.pairs)
        try:
            repeats = run.complete(size if left else None)
        finally:
            progress.close()
        write_summary(store.folder, judge, run.unavailable, repeats)
        return store.folder


def _several(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)
