"""The file that fine-tuning writes: what was trained, and what it was trained for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from ..core.patching import PatchLedger
from ..core.weight_changes import WeightChanges, differs
from ..errors import ConfigError, DitaccelError, UsageError
from . import given
from .files import write_atomically

A = TypeVar("A", bound="Adapter")
_CHANGE, _UP, _DOWN = "change.", "up.", "down."


def in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata in order: the library writes them in a random one.

    So a run that was killed and resumed ends with the same bytes.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text + content[end:]


@dataclass(eq=False)
class Adapter:
    """Trained parts of one or several transformers; the base of what methods train besides.

    Attributes:
        options: of the method, as trained: a config of other ones does not fit.
        fingerprints: of each component's transformer.
        changes: component -> parameter name -> what is added to it.
        factors: component -> parameter name -> two matrices whose product is added to it; `load`
            multiplies them, and has changes only.
        notes: how it was trained, for people.
        source: the file, for messages.
        learning: whether a student trains them, and changes the transformers' weights itself.
        method: name of the method that they were trained for.
        formats: of the file: the one that is written, and those that are also read.
    """

    formats: ClassVar[tuple[str, ...]] = ("ditaccel-adapter-1",)

    options: dict[str, Any]
    fingerprints: dict[str, dict[str, Any]] = field(default_factory=dict)
    changes: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    learning: bool = False
    method: str = ""
    factors: dict[str, dict[str, tuple[Tensor, Tensor]]] = field(default_factory=dict)
    _in_place: dict[str, WeightChanges] = field(default_factory=dict, init=False, repr=False)

    # -- on a transformer --

    def attach(self, name: str, transformer: nn.Module, ledger: PatchLedger) -> None:
        """Check that this is the transformer it was trained for; `put` puts the changes in place.

        Raises:
            ConfigError: it is another one, or its weights are on no device.
        """
        if self.learning:
            return
        if name not in self.fingerprints:
            raise ConfigError(
                f"{self.source} holds nothing for {name}, only for "
                f"{', '.join(self.fingerprints) or 'no component'}; fine-tune for this pipeline"
            )
        why = differs(self.fingerprints[name], transformer)
        if why:
            raise ConfigError(
                f"{self.source} was trained for another {name}: {why}; load the model it was "
                "trained for, or fine-tune for this one"
            )
        ledger.on_undo(lambda: self._detach(name))
        changes = self.changes.get(name, {})
        self._in_place[name] = WeightChanges(name, transformer, changes, self.source)

    def _detach(self, name: str) -> None:
        self.take_off(name)
        self._in_place.pop(name, None)

    def put(self, name: str, generation: int) -> None:
        """Put the changes of a component in place; see `WeightChanges`.

        Raises:
            ConfigError: its weights cannot be changed where they are now.
        """
        if name in self._in_place:
            self._in_place[name].put(generation)

    def take_off(self, name: str) -> None:
        """Put the component's own weights back."""
        if name in self._in_place:
            self._in_place[name].take_off()

    # -- on disk --

    def parts(self, component: str) -> dict[str, Tensor]:
        """What a method trains besides changes of weights, by name in the file."""
        return {}

    def take_parts(self, component: str, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `parts` gave."""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their name in the file."""
        found = {}
        for component in self.fingerprints:
            for name, part in self.parts(component).items():
                found[f"{component}/{name}"] = part.detach().float().cpu()
        for component, changes in self.changes.items():
            for name, change in changes.items():
                found[f"{component}/{_CHANGE}{name}"] = change.detach().half().cpu()
        for component, factors in self.factors.items():
            for name, pair in factors.items():
                for stem, factor in zip((_UP, _DOWN), pair, strict=True):
                    found[f"{component}/{stem}{name}"] = factor.detach().half().cpu()
        return {name: tensor.contiguous() for name, tensor in found.items()}

    def save(self, path: str | Path) -> int:
        """Write a safetensors file, whole or not at all; returns its size in bytes."""
        from safetensors.torch import save

        described: dict[str, Any] = {"options": self.options, "models": self.fingerprints}
        described["notes"] = self.notes
        if self.method:
            described["method"] = self.method
        about = json.dumps(described, sort_keys=True)
        content = in_order(save(self.tensors(), {"format": self.formats[0], "ditaccel": about}))
        write_atomically(Path(path), lambda file: file.write(content))
        return len(content)

    @classmethod
    def load(cls: type[A], path: str | Path, method: str = "") -> A:
        """Read what `save` wrote.

        Args:
            path: of the file.
            method: that it must have been trained for; "" where the format alone says it.

        Raises:
            UsageError: no such file, or damaged.
            ConfigError: it holds something else.
        """
        from safetensors import SafetensorError, safe_open

        path = given.path(path)
        if not path.is_file():
            raise UsageError(f"no weights at {path}; ditaccel.finetune writes them")
        try:
            with safe_open(str(path), "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{path} is not a readable safetensors file: {error}") from None
        written = about.get("format")
        if written not in cls.formats:
            raise ConfigError(
                f"{path} does not hold weights for {method or cls.__name__} of this version (its "
                f"format is {written!r}, not {cls.formats[0]!r}); ditaccel.finetune writes them"
            )
        try:
            return cls._of_file(json.loads(about["ditaccel"]), tensors, written, method, path)
        except DitaccelError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError):
            raise UsageError(
                f"{path} is damaged: parts of it are missing; train again, or copy it again"
            ) from None

    @classmethod
    def _of_file(
        cls: type[A],
        data: dict[str, Any],
        tensors: Mapping[str, Tensor],
        written: str,
        method: str,
        path: Path,
    ) -> A:
        """What a file holds.

        Raises:
            ConfigError: it was trained for another method.
            KeyError: parts of it are missing (or another error of that kind).
        """
        if method != data.get("method", method):
            raise ConfigError(
                f"{path} was trained for {data['method']}, not for {method}; give it to a config "
                f"of {data['method']}, or train for {method}"
            )
        made = cls(cls.read_options(data["options"], written), data["models"], method=method)
        made.notes, made.source = data["notes"], str(path)
        for component in made.fingerprints:
            stem = f"{component}/"
            own = {n.removeprefix(stem): t for n, t in tensors.items() if n.startswith(stem)}
            made.changes[component] = {
                n.removeprefix(_CHANGE): t for n, t in own.items() if n.startswith(_CHANGE)
            }
            for name in [n.removeprefix(_UP) for n in own if n.startswith(_UP)]:
                product = own[f"{_UP}{name}"].float() @ own[f"{_DOWN}{name}"].float()
                made.changes[component][name] = product
            ours = (_CHANGE, _UP, _DOWN)
            made.take_parts(component, {n: t for n, t in own.items() if not n.startswith(ours)})
        return made

    @classmethod
    def read_options(cls, options: dict[str, Any], written: str) -> dict[str, Any]:
        """Options from a file of a format, as they are today."""
        return options
