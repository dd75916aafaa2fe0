"""The model under comparison: opened once, and called in the same way for every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ditaccel.pipelines import FamilyAdapter, adapters

from ditaccel.api import is_accelerated
from ditaccel.core.patching import is_compiled, unwrapped
from ditaccel.core.transformers import denoisers_of, with_checkpoint
from ditaccel.errors import UnsupportedError, UsageError
from ditaccel.io import provenance
from ditaccel.io.asking import default_call
from ditaccel.io.factory import Factory, Opened, read_factory
from ditaccel.io.models import Sheet, read_sheet, sheet_of
from ditaccel.io.opening import open_pipeline
from ditaccel.io.schedulers import put_scheduler

from ..options import Options
from .sampler import Sampler

_STEPS = 50


@dataclass(frozen=True)
class Subject:
    """The model under comparison.

    Attributes:
        name: as the user gave it, or the class of a loaded pipeline.
        opened: the pipeline, and the arguments that its factory gave.
        sheet: what the model folder says about itself.
        factory: the user's function that made the pipeline, None for the model's own.
        loaded: whether the pipeline was handed over as such.
    """

    name: str
    opened: Opened
    sheet: Sheet
    factory: Factory | None = None
    loaded: bool = False

    @property
    def fingerprint(self) -> str:
        """What tells the model from others of its name."""
        if self.loaded:
            return provenance.fingerprint_of(self.pipe)
        return provenance.fingerprint(self.name)

    @property
    def pipe(self) -> Any:
        """The pipeline."""
        return self.opened.pipe

    @property
    def family(self) -> str:
        """Family of its transformer, "" where it is unknown."""
        return self.sheet.family or provenance.family_of(self.pipe)

    @property
    def for_presets(self) -> str | FamilyAdapter:
        """The family, and which published checkpoint of it this is; its name if it is not known."""
        adapter, parts = adapters().get(self.family), denoisers_of(self.pipe)
        if adapter is None or not parts:
            return self.family
        return with_checkpoint(self.pipe, parts, adapter)

    def sampler(self, options: Options, prompts: Sequence[str]) -> Sampler:
        """What calls the pipeline for every row.

        Raises:
            UsageError: fewer than 2 steps, or a prompt that the pipeline cannot be asked for.
        """
        call = default_call(self.pipe, self.sheet, options.call, self.opened.call)
        steps = int(options.steps or call.get("num_inference_steps") or _STEPS)
        if steps < 2:
            raise UsageError(f"{steps} dense step(s): caching needs at least 2")
        sampler = Sampler(self.pipe, call, steps)
        for prompt in prompts:
            sampler.subject(prompt)
        return sampler


def open_subject(model: str | Path | Any, options: Options) -> Subject:
    """Open the model that a comparison is about.

    Args:
        model: folder or Hub id of a diffusers pipeline, or a loaded pipeline.
        options: device, dtype and the pipeline's factory.

    Raises:
        UnsupportedError: a transformer of the pipeline is compiled.
        UsageError: the model cannot be opened.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    factory = read_factory(options.pipeline) if options.pipeline else None
    if isinstance(model, (str, Path)):
        sheet = read_sheet(model)
        opened = open_pipeline(model, options.device, options.dtype, factory)
        put_scheduler(opened.pipe, options.scheduler)
        subject = Subject(str(model), opened, sheet, factory)
    else:
        _refuse_what_is_for_folders(model, options)
        subject = Subject(type(model).__name__, Opened(model), sheet_of(model), loaded=True)
    _refuse_compiled(subject.pipe)
    return subject


def _refuse_what_is_for_folders(pipe: Any, options: Options) -> None:
    """A loaded pipeline is used as it is, and as its dense self.

    Raises:
        UsageError: it is accelerated, or an option asks for another device, dtype, pipeline or
            scheduler.
    """
    for name in ("device", "dtype", "pipeline", "scheduler"):
        if getattr(options, name) != getattr(Options(), name):
            raise UsageError(
                f"{name} is for a model that evaluate loads; a loaded pipeline is used as it is",
                name,
            )
    if is_accelerated(pipe):
        raise UsageError(
            "evaluate compares with the dense pipeline, and this one is accelerated; call "
            "ditaccel.restore(pipe) first"
        )


def _refuse_compiled(pipe: Any) -> None:
    """Refuse what would end in a failure of the compiler, or in blocks that run uncompiled.

    Raises:
        UnsupportedError: a transformer of the pipeline is compiled, whole or block by block.
    """
    for name, part in getattr(pipe, "components", {}).items():
        if not isinstance(part, torch.nn.Module) or not name.startswith("transformer"):
            continue
        if unwrapped(part) is not part or any(is_compiled(module) for module in part.modules()):
            raise UnsupportedError(
                f"{name} is compiled, and eval counts what runs inside its blocks, which a "
                "compiled graph does not show; measure the pipeline before it is compiled"
            )
