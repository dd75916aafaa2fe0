"""The index of a model, which says what its pipeline is made of: an ordinary or a modular one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.kinds import is_modular, is_pipeline
from ..errors import UsageError
from . import given

ORDINARY, MODULAR = "model_index.json", "modular_model_index.json"
# Of a modular pipeline whose blocks are code in the folder.
_OWN_BLOCKS = "modular_config.json"


@dataclass(frozen=True)
class Index:
    """The index of a model.

    Attributes:
        model: folder or Hub id.
        modular: whether it is of a modular pipeline.
        values: its content.
    """

    model: str
    modular: bool
    values: Mapping[str, Any]

    @property
    def pipeline(self) -> str:
        """Name of the pipeline's class."""
        return str(self.values.get("_class_name"))

    @property
    def parts(self) -> dict[str, str]:
        """Class names of the parts that there are, by part."""
        found = {}
        for name, entry in self.values.items():
            if isinstance(entry, list) and len(entry) == (3 if self.modular else 2):
                kind = entry[1]
                if self.modular and kind is None:  # it was not loaded when it was saved
                    kind = (entry[2].get("type_hint") or [None, None])[1]
                if kind is not None:
                    found[name] = str(kind)
        return found

    def pipeline_class(self) -> type:
        """The class of the pipeline.

        Raises:
            UsageError: this version of diffusers has none of that name and kind.
        """
        import diffusers

        kind: Any = getattr(diffusers, self.pipeline, None)
        if is_pipeline(kind) and is_modular(kind) == self.modular:
            found: type = kind
            return found
        raise UsageError(
            f"{self.model} asks for the pipeline {self.pipeline}, which this version of diffusers "
            "does not have; code that comes with a model is never run"
        )

    def hollow(self) -> Any:
        """The modular pipeline without the parts that are loaded from files.

        Raises:
            UsageError: diffusers has no such pipeline, or its blocks are code of the model's own.
        """
        kind: Any = self.pipeline_class()
        if (given.path(self.model) / _OWN_BLOCKS).is_file():
            raise UsageError(
                f"is needed: {self.model} brings blocks of its own ({_OWN_BLOCKS}), and code that "
                "comes with a model is never run; load it in a function of yours",
                "pipeline",
            )
        return kind(pretrained_model_name_or_path=self.model, modular_config_dict=dict(self.values))

    def load_modular(self, dtype: torch.dtype) -> Any:
        """The modular pipeline with its parts, from safetensors only.

        Raises:
            UsageError: as `hollow`.
            Exception: whatever diffusers and transformers raise of files that are missing.
        """
        pipe = self.hollow()
        for name in pipe.pretrained_component_names:
            spec = pipe.get_component_spec(name)
            if not spec.pretrained_model_name_or_path:
                continue  # left out, or left to the user
            model = inspect.isclass(spec.type_hint) and issubclass(spec.type_hint, torch.nn.Module)
            safe = {"use_safetensors": True} if model else {}
            pipe.register_components(**{name: spec.load(torch_dtype=dtype, **safe)})
        return pipe

    def missing(self) -> list[str]:
        """Parts that the folder should hold and does not."""
        folder = Path(given.path(self.model))
        if not folder.is_dir():
            return []
        if not self.modular:
            return [name for name in self.parts if not (folder / name).exists()]
        found = []
        for name in self.parts:
            where = self.values[name][2]
            source, below = where.get("pretrained_model_name_or_path"), where.get("subfolder")
            if source and not (folder / (below or name)).exists():
                # (diffusers looks in the folder first, and then where it was saved)
                there = Path(source)
                if there.is_absolute() and not (there / (below or "")).exists():
                    found.append(name)
        return found


def index_file(folder: Path) -> Path | None:
    """The index of a model folder, None where it holds none; an ordinary one comes first."""
    files = (folder / ORDINARY, folder / MODULAR)
    return next((path for path in files if path.is_file()), None)
