"""Paired runs: every row on every sample, same seed and noise, in turns, resumable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ditaccel.batch.workers.devices import choose_devices
from ditaccel.batch.workers.shards import Rank
from ditaccel.errors import UsageError
from ditaccel.io.progress import Progress

from .comparison.prepared import Asked, Prepared, prepare
from .options import Options
from .store import Store
from .summary.summarise import write_summary
from .workers.crew import share
from .workers.parts import absorb


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
    asked = Asked(model, texts, prompts, seeds, options)
    devices = _devices(asked)
    prepared = prepare(asked, devices[0])
    with Store(out, prepared.setup) as store:
        absorb(store)  # what the workers of a killed run have made
        return _run(store, prepared, devices)


def _run(store: Store, prepared: Prepared, devices: Sequence[str]) -> Path:
    options, samples = prepared.asked.options, prepared.asked.samples
    rows = prepared.configs
    left = sum(not store.is_done(row.id, s.id) for row in rows for s in samples)
    begun = {sample for _, sample in store.generations}
    fresh = [(turn, s) for turn, s in enumerate(samples) if s.id not in begun]
    devices = devices[: max(1, len(fresh))]
    total = len(rows) * len(samples)
    progress = Progress(total, total - left, options.quiet)
    run = prepared.comparison(store, progress, len(devices))
    size = prepared.size(left) if left else None
    try:
        if len(devices) == 1:
            repeats = run.complete(size)
        else:
            own = [(turn, s) for turn, s in enumerate(samples) if s.id in begun]
            repeats = share(run, prepared.asked, devices, size or "", own, fresh)
    finally:
        progress.close()
    write_summary(store.folder, prepared.judge, run.unavailable, repeats)
    return store.folder


def _devices(asked: Asked) -> tuple[str, ...]:
    """The device of each worker, this process's first.

    Raises:
        UsageError: there is no such device, or a loaded pipeline is to be shared.
    """
    options = asked.options
    if options.workers == 1:
        return (options.device,)
    if not isinstance(asked.model, (str, Path)):
        raise UsageError(
            "several workers each load the model; give its folder or Hub id, not a pipeline",
            "workers",
        )
    count = min(options.workers, len(asked.samples))
    return choose_devices(options.device, count, Rank(), count, str(asked.model))


def _several(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)
