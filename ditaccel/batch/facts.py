"""What a job must know of a model before any weight is loaded."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from .. import config as configs
from ..config.completion import completed
from ..config.specs import DENSE as DENSE_TEXTS
from ..core.kinds import NEEDED, arguments, class_of_part, is_modular, source_of
from ..core.patching import unwrapped
from ..core.transformers import denoisers_of
from ..errors import ConfigError, UnsupportedError, UsageError
from ..io import given
from ..io.factory import Factory
from ..io.indexes import Index
from ..io.models import (
    Sheet,
    class_label,
    line_of,
    quiet_loading,
    read_index,
    read_sheet,
    sheet_of,
)
from ..io.provenance import fingerprint, fingerprint_of
from ..pipelines import adapter_for
from ..pipelines.adapter import FamilyAdapter, adaptive_presets
from ..pipelines.schedules import recognised
from ..warning import warn

DENSE = "none"


@dataclass(frozen=True)
class Facts:
    """A model as its index, its `sample.json` and its pipeline class describe it.

    Attributes:
        model: folder or Hub id, as given.
        pipeline: name of the diffusers class.
        family: of its transformer, empty if ditaccel does not know it.
        transformer: name of the transformer's class.
        arguments: parameters of the pipeline call -> whether it has a default.
        labels: class name -> number, for pipelines that are asked by class.
        sheet: the model's own defaults.
        fingerprint: hash over its files.
        starts_from: `image` or `video` where every call needs one, whatever its signature says.
    """

    model: str
    pipeline: str
    family: str
    transformer: str
    arguments: dict[str, bool]
    labels: dict[str, int] = field(default_factory=dict)
    sheet: Sheet = field(default_factory=Sheet)
    fingerprint: str = ""
    starts_from: str = ""

    @property
    def by_class(self) -> bool:
        """Whether the pipeline is asked by class number."""
        return "class_labels" in self.arguments

    @property
    def is_video(self) -> bool:
        """Whether it makes clips."""
        return "num_frames" in self.arguments or self.sheet.fps is not None

    def number_of(self, name: str) -> int:
        """The number of a class name.

        Raises:
            UsageError: there is no such class.
        """
        return class_label(SimpleNamespace(labels=self.labels), name)

    def _adapter(self) -> FamilyAdapter:
        """The family's, or what stands for it until the transformer is loaded and recognised."""
        name = f"unknown ({self.transformer})"
        adapter = adapter_for(self.transformer) or FamilyAdapter(
            name, (self.transformer,), blocks=(), presets=adaptive_presets(), provisional=True
        )
        return replace(adapter, checkpoint=self._checkpoint(adapter.name))

    def _checkpoint(self, family: str) -> str:
        """The published checkpoint that the model is, by its name and its files."""
        folder = given.path(self.model)
        config = folder / "transformer" / "config.json"
        try:
            values = dict(given.parse_json(config.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            values = {}  # it is not here yet: its name decides
        number = 2 if (folder / "transformer_2").exists() else 1
        return recognised(family, self.model, values, self.pipeline, number, folder.exists())

    def resolve(self, config: str) -> dict[str, Any] | None:
        """A config's text as plain data; None for `none`.

        Raises:
            ConfigError: no such preset, file or option.
            UnsupportedError: the model has no transformer.
        """
        if config in DENSE_TEXTS:
            return None
        if not self.transformer:
            raise UnsupportedError(
                f"{self.pipeline} has no transformer, which is what ditaccel accelerates; run it "
                f"dense, with the config {DENSE}"
            )
        chosen, _ = completed(configs.resolve(config, self._adapter()), self._adapter())
        if not chosen.methods and chosen.steps in ("keep", "auto"):
            raise ConfigError(f"the config {config} names no method; for dense runs: {DENSE}")
        return configs.to_dict(replace(chosen, label=""))


def _class_of(index: Index, factory: Factory | None) -> type:
    """The pipeline class that is going to be called."""
    try:
        with quiet_loading():
            return index.pipeline_class()
    except UsageError:
        if factory is None:
            raise
        raise UsageError(
            f"{factory.reference}: which class the function returns is not known before it runs; "
            "annotate it, such as `def make(model, device) -> FluxImg2ImgPipeline:`",
            "pipeline",
        ) from None


def _transformer_of(cls: type, parts: Mapping[str, str]) -> str:
    """Name of the transformer's class: the model's, else what the pipeline declares."""
    listed = (kind for name, kind in parts.items() if name.startswith("transformer"))
    return parts.get("transformer") or next(listed, "") or class_of_part(cls, "transformer")


def _check_parts(index: Index, cls: type) -> None:
    """Refuse a model folder that lacks a part of its pipeline, before a job's folder is made."""
    needed = [
        name
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    missing = [name for name in needed if name not in index.values] + index.missing()
    if missing:
        raise UsageError(
            f"{index.model} is incomplete: it has no {', '.join(missing[:5])}; get it again (an "
            "interrupted download?)"
        )


# Pipelines whose names say what they start from; most declare it with a default of None.
_STARTS = {
    "VideoToVideo": "video",
    "ImageToVideo": "image",
    "Image2Video": "image",
    "Img2Img": "image",
    "Edit": "image",
}


def _starts_from(name: str, arguments: dict[str, bool]) -> str:
    return next((k for part, k in _STARTS.items() if part in name and k in arguments), "")


def _defaulted(pipe: Any) -> dict[str, bool]:
    """Parameters of a pipeline's call, or of its class's -> whether it has a default."""
    return {name: default is not NEEDED for name, default in arguments(pipe).items()}


def _fitting(sheet: Sheet, taken: Mapping[str, Any], pipeline: str) -> Sheet:
    """The sheet of a model for another pipeline of it than it was written for."""
    for key in sheet.call.keys() - taken:
        warn(f"{key} of the model's sample.json: {pipeline} takes no such argument")
    return replace(sheet, call={k: v for k, v in sheet.call.items() if k in taken})


def facts_of(pipe: Any) -> Facts:
    """Look at a pipeline that is loaded.

    Its defaults are those of the folder that it came from, if any; its fingerprint is that of its
    weights, so that what was made with others is made again.

    Args:
        pipe: a diffusers pipeline.

    Raises:
        UsageError: it is not a pipeline, or its model's sample.json is damaged.
    """
    cls = type(pipe)
    transformer = next(iter(denoisers_of(pipe).values()), None)
    kind = "" if transformer is None else type(unwrapped(transformer)).__name__
    adapter = adapter_for(kind)
    taken = _defaulted(pipe)
    sheet = _fitting(sheet_of(pipe), taken, cls.__name__) if is_modular(pipe) else sheet_of(pipe)
    return Facts(
        model=source_of(pipe) or cls.__name__,
        pipeline=cls.__name__,
        family=adapter.name if adapter else "",
        transformer=kind,
        arguments=taken,
        labels=dict(getattr(pipe, "labels", None) or {}),
        sheet=sheet,
        fingerprint=fingerprint_of(pipe),
        starts_from=_starts_from(cls.__name__, taken),
    )


def read_facts(model: str, factory: Factory | None = None) -> Facts:
    """Look at a model without loading its weights.

    Args:
        model: folder or Hub id of a diffusers pipeline.
        factory: what will make the pipeline of it; the class that its annotation names, if any,
            stands in for the model's own, and the model need not be a folder then.

    Raises:
        UsageError: there is none, or it needs code of its own.
    """
    cls = None if factory is None else factory.pipeline_class()
    try:
        index = read_index(model)
    except UsageError:
        if cls is None:
            raise
        index = Index(model, is_modular(cls), {})
    cls = cls or _class_of(index, factory)
    own = factory is None and index.modular
    taken = _defaulted(index.hollow() if own else cls)
    if factory is None:
        _check_parts(index, cls)
    name, sheet, digest = cls.__name__, read_sheet(model), fingerprint(model)
    if factory is not None or index.modular:
        sheet = _fitting(sheet, taken, name)
    if factory is not None:
        digest = hashlib.sha256(f"{digest} {factory.identity}".encode()).hexdigest()[:16]
    try:
        transformer = _transformer_of(cls, index.parts)
        labels = {
            part.strip(): int(number)
            for number, text in (index.values.get("id2label") or {}).items()
            for part in str(text).split(",")
        }
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise UsageError(
            f"{model}: its index is damaged ({line_of(error)}); get the model again"
        ) from error
    adapter = adapter_for(transformer)
    return Facts(
        model=str(model),
        pipeline=name,
        family=adapter.name if adapter else "",
        transformer=transformer,
        arguments=taken,
        labels=labels,
        sheet=sheet,
        fingerprint=digest,
        starts_from="" if factory is not None else _starts_from(name, taken),
    )
