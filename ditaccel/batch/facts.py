"""What a job must know of a model before any weight is loaded."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .. import config as configs
from ..config.completion import completed
from ..config.specs import DENSE as DENSE_TEXTS
from ..core.patching import unwrapped
from ..core.transformers import denoisers_of
from ..errors import ConfigError, UnsupportedError, UsageError
from ..io import given
from ..io.asking import refuse_modular
from ..io.factory import Factory
from ..io.models import (
    Sheet,
    class_label,
    folder_of,
    hub_problem,
    is_hub_id,
    line_of,
    quiet_loading,
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
    """A model as its `model_index.json`, its `sample.json` and its pipeline class describe it.

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
        if not chosen.methods:
            raise ConfigError(f"the config {config} names no method; for dense runs: {DENSE}")
        return configs.to_dict(replace(chosen, label=""))


def _index(model: str) -> dict[str, Any]:
    folder = given.path(model)
    if folder.exists():
        path = folder / "model_index.json"
        if not path.is_file():
            raise UsageError(f"{folder} holds no model_index.json: not a diffusers pipeline folder")
        try:
            return dict(given.parse_json(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(
                f"{path} is damaged ({line_of(error)}); get the model again"
            ) from error
    if not is_hub_id(model):
        raise UsageError(f"no model folder at {model}, and it is not a Hub id (owner/name) either")
    from diffusers import DiffusionPipeline

    try:
        with quiet_loading():
            return dict(DiffusionPipeline.load_config(model))
    except Exception as error:
        # The Hub client raises a dozen unrelated types here.
        raise hub_problem(model, error) from error


def _class_of(model: str, name: str, factory: Factory | None) -> type:
    """The pipeline class that is going to be called."""
    import diffusers

    with quiet_loading():
        cls = getattr(diffusers, name, None)
    if inspect.isclass(cls) and issubclass(cls, diffusers.DiffusionPipeline):
        return cls
    if factory is not None:
        raise UsageError(
            f"{factory.reference}: which class the function returns is not known before it runs; "
            "annotate it, such as `def make(model, device) -> FluxImg2ImgPipeline:`",
            "pipeline",
        )
    raise UsageError(
        f"{model} asks for the pipeline {name}, which this version of diffusers does not have; "
        "code that comes with a model is never run"
    )


def _transformer_of(cls: type, index: dict[str, Any]) -> str:
    """Name of the transformer's class: the model's, else what the pipeline is annotated with."""
    listed = (index.get("transformer") or ["", ""])[1]
    if listed:
        return str(listed)
    found = inspect.signature(cls).parameters.get("transformer")
    annotation = inspect.Parameter.empty if found is None else found.annotation
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation)


def _check_parts(folder: Path, index: dict[str, Any], cls: type) -> None:
    """Refuse a model folder that lacks a part of its pipeline, before a job's folder is made."""
    needed = [
        name
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    listed = {k: v for k, v in index.items() if isinstance(v, list) and len(v) == 2}
    missing = [name for name in needed if name not in index]
    if folder.is_dir():
        missing += [k for k, v in listed.items() if v[1] and not (folder / k).exists()]
    if missing:
        raise UsageError(
            f"{folder} is incomplete: it has no {', '.join(missing[:5])}; get it again (an "
            "interrupted download?)"
        )


# Pipelines whose names say what they start from; most declare it with a default of None.
_STARTS = {"VideoToVideo": "video", "ImageToVideo": "image", "Img2Img": "image", "Edit": "image"}


def _starts_from(name: str, arguments: dict[str, bool]) -> str:
    return next((k for part, k in _STARTS.items() if part in name and k in arguments), "")


def _arguments_of(cls: type) -> dict[str, bool]:
    """Parameters of a pipeline's call -> whether it has a default.

    Raises:
        UnsupportedError: a modular pipeline, whose call names none.
    """
    refuse_modular(cls, "generate")
    return {
        key: parameter.default is not inspect.Parameter.empty
        for key, parameter in inspect.signature(cls.__call__).parameters.items()
        if key != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }


def facts_of(pipe: Any) -> Facts:
    """Look at a pipeline that is loaded.

    Its defaults are those of the folder that it came from, if any; its fingerprint is that of its
    weights, so that what was made with others is made again.

    Args:
        pipe: a diffusers pipeline.

    Raises:
        UnsupportedError: it is a modular pipeline.
        UsageError: it is not a pipeline, or its model's sample.json is damaged.
    """
    cls = type(pipe)
    transformer = next(iter(denoisers_of(pipe).values()), None)
    kind = "" if transformer is None else type(unwrapped(transformer)).__name__
    adapter = adapter_for(kind)
    arguments = _arguments_of(cls)
    return Facts(
        model=folder_of(pipe) or cls.__name__,
        pipeline=cls.__name__,
        family=adapter.name if adapter else "",
        transformer=kind,
        arguments=arguments,
        labels=dict(getattr(pipe, "labels", None) or {}),
        sheet=sheet_of(pipe),
        fingerprint=fingerprint_of(pipe),
        starts_from=_starts_from(cls.__name__, arguments),
    )


def read_facts(model: str, factory: Factory | None = None) -> Facts:
    """Look at a model without loading its weights.

    Args:
        model: folder or Hub id of a diffusers pipeline.
        factory: what will make the pipeline of it; the class that its annotation names, if any,
            stands in for the model's own, and the model need not be a folder then.

    Raises:
        UnsupportedError: it is a modular pipeline.
        UsageError: there is none, or it needs code of its own.
    """
    cls = None if factory is None else factory.pipeline_class()
    try:
        index = _index(model)
    except UsageError:
        if cls is None:
            raise
        index = {}
    cls = cls or _class_of(model, str(index.get("_class_name")), factory)
    if factory is None:
        _check_parts(given.path(model), index, cls)
    name, sheet, digest = cls.__name__, read_sheet(model), fingerprint(model)
    arguments = _arguments_of(cls)
    if factory is not None:
        for key in sheet.call.keys() - arguments:
            warn(f"{key} of the model's sample.json: {name} takes no such argument")
        sheet = replace(sheet, call={k: v for k, v in sheet.call.items() if k in arguments})
        digest = hashlib.sha256(f"{digest} {factory.identity}".encode()).hexdigest()[:16]
    try:
        transformer = _transformer_of(cls, index)
        labels = {
            part.strip(): int(number)
            for number, text in (index.get("id2label") or {}).items()
            for part in str(text).split(",")
        }
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise UsageError(
            f"{model}: model_index.json is damaged ({line_of(error)}); get the model again"
        ) from error
    adapter = adapter_for(transformer)
    return Facts(
        model=str(model),
        pipeline=name,
        family=adapter.name if adapter else "",
        transformer=transformer,
        arguments=arguments,
        labels=labels,
        sheet=sheet,
        fingerprint=digest,
        starts_from="" if factory is not None else _starts_from(name, arguments),
    )
