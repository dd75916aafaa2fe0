"""The file that fine-tuning for SLA writes: what was trained, and what it was trained for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.patching import PatchLedger
from ...errors import ConfigError, UsageError
from ...io import given
from ...io.files import write_atomically
from .own_weights import Slot, cannot_change, own_weights, slots_of

FORMAT = "ditaccel-sla-2"
# In which shares of tiles are percentages.
_OLD_FORMAT = "ditaccel-sla-1"
_SHARES = ("critical", "negligible")
# What files hold that were written before these options were there.
_BEFORE = {"linear": "marginal", "projection": "per_head"}
# Another model's weights give sketches that differ by about their norm; rounding to 8 bits by 1 %.
_SKETCH_TOLERANCE = 0.05
_SKETCHES = 16


def fingerprint(transformer: nn.Module) -> dict[str, Any]:
    """What tells a transformer from others, whatever dtype its weights are in.

    Returns:
        `structure`, a hash of the names and shapes of its parameters, and `sketch`, for some
        matrices `[name, inner product with a fixed sign pattern, norm]`.
    """
    parameters = {name: slot.parameter for name, slot in own_weights(transformer).items()}
    lines = [f"{name} {tuple(p.shape)}" for name, p in sorted(parameters.items())]
    structure = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    matrices = [n for n, p in sorted(parameters.items()) if p.ndim == 2 and p.device.type != "meta"]
    step = max(1, len(matrices) // _SKETCHES)
    sketch = []
    for name in matrices[::step][:_SKETCHES]:
        values = parameters[name].detach().to("cpu", torch.float64).flatten()
        signs = (torch.arange(values.numel()) * 2654435761 % 4096 < 2048).double() * 2 - 1
        sketch.append([name, float(values @ signs), float(values.norm())])
    return {"structure": structure, "sketch": sketch}


def differs(known: Mapping[str, Any], transformer: nn.Module) -> str:
    """Why a transformer is not the one of a fingerprint; "" where it is."""
    own = fingerprint(transformer)
    if own["structure"] != known["structure"]:
        return "its parameters have other names or shapes"
    values = {name: value for name, value, _ in own["sketch"]}
    for name, value, norm in known["sketch"]:
        if name in values and abs(values[name] - value) > _SKETCH_TOLERANCE * norm:
            return f"its weights differ, {name} to begin with (a LoRA fused into them?)"
    return ""


@dataclass(eq=False)
class SLAWeights:
    """Trained parts of one or several transformers.

    Attributes:
        options: those of `defaults.SHARED`, as trained.
        fingerprints: of each component's transformer.
        projections: component -> a weight `(H, D, D)` and a bias `(H, D)` for each attention layer;
            H is 1 where all heads share them.
        changes: component -> parameter name -> what is added to it.
        notes: how it was trained, for people.
        source: the file, for messages.
        learning: whether a student trains them, and changes the transformers' weights itself.
    """

    options: dict[str, Any]
    fingerprints: dict[str, dict[str, Any]] = field(default_factory=dict)
    projections: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    changes: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    learning: bool = False
    _swaps: dict[str, list[_Swap]] = field(default_factory=dict, init=False, repr=False)
    _transformers: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False)
    _followed: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def projection(
        self, component: str, layer: int, device: torch.device
    ) -> tuple[Tensor, Tensor] | None:
        """Weight and bias of one layer, on the device where its attention runs."""
        layers = self.projections.get(component, [])
        if layer >= len(layers):
            return None
        weight, bias = layers[layer]
        if weight.device != device:
            layers[layer] = weight.to(device), bias.to(device)
        return layers[layer]

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
        self._transformers[name] = transformer
        ledger.on_undo(lambda: self._detach(name))
        self._follow(name, -1)

    def _detach(self, name: str) -> None:
        self.take_off(name)
        for parts in (self._swaps, self._transformers, self._followed):
            parts.pop(name, None)

    def _follow(self, name: str, generation: int) -> None:
        """Find the weights once a generation: modules may have been wrapped, fused, exchanged.

        Raises:
            ConfigError: they cannot be changed where they are now.
        """
        if self._followed.get(name) == generation:
            return
        slots, missing = slots_of(self._transformers[name], self.changes.get(name, {}))
        if missing:
            raise ConfigError(
                f"{self.source} changes weights that {name} does not have any more, {missing[0]} "
                "to begin with; load the model it was trained for"
            )
        for slot, _ in slots:
            why = cannot_change(slot)
            if why:
                raise ConfigError(f"{self.source} cannot be applied: {name}'s weights {why}")
        self._swaps[name] = [_Swap(slot, change) for slot, change in slots]
        self._followed[name] = generation

    def put(self, name: str, generation: int) -> None:
        """Put the changes of a component in place; they are worked out again for each generation,
        since its own weights may have been moved, or had an adapter fused into them.

        Raises:
            ConfigError: its weights cannot be changed where they are now.
        """
        if self.learning:
            return
        self._follow(name, generation)
        for swap in self._swaps.get(name, ()):
            swap.put(generation)

    def take_off(self, name: str) -> None:
        """Put the component's own weights back."""
        for swap in self._swaps.get(name, ()):
            swap.take_off()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their name in the file."""
        found = {}
        for component, layers in self.projections.items():
            for i, (weight, bias) in enumerate(layers):
                found[f"{component}/projection.{i}.weight"] = weight.detach().float().cpu()
                found[f"{component}/projection.{i}.bias"] = bias.detach().float().cpu()
        for component, changes in self.changes.items():
            for name, change in changes.items():
                found[f"{component}/change.{name}"] = change.detach().half().cpu()
        return {name: tensor.contiguous() for name, tensor in found.items()}

    def save(self, path: str | Path) -> int:
        """Write a safetensors file, whole or not at all; returns its size in bytes."""
        from safetensors.torch import save

        described = {"options": self.options, "models": self.fingerprints, "notes": self.notes}
        content = save(
            self.tensors(), {"format": FORMAT, "ditaccel": json.dumps(described, sort_keys=True)}
        )
        write_atomically(Path(path), lambda file: file.write(content))
        return len(content)

    @classmethod
    def load(cls, path: str | Path) -> SLAWeights:
        """Read what `save` wrote.

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
        if about.get("format") not in (FORMAT, _OLD_FORMAT):
            raise ConfigError(
                f"{path} does not hold weights for SLA of this version (its format is "
                f"{about.get('format')!r}, not {FORMAT!r}); ditaccel.finetune writes them"
            )
        data = json.loads(about["ditaccel"])
        options = {**_BEFORE, **data["options"]}
        if about["format"] == _OLD_FORMAT:
            options |= {name: options[name] / 100 for name in _SHARES if name in options}
        made = cls(options, data["models"], notes=data["notes"], source=str(path))
        for component in made.fingerprints:
            stem = f"{component}/projection."
            layers = sum(n.startswith(stem) and n.endswith(".weight") for n in tensors)
            made.projections[component] = [
                (tensors[f"{stem}{i}.weight"], tensors[f"{stem}{i}.bias"]) for i in range(layers)
            ]
            stem = f"{component}/change."
            made.changes[component] = {
                n.removeprefix(stem): t for n, t in tensors.items() if n.startswith(stem)
            }
        return made


class _Swap:
    """One weight: its own values, and the changed ones while a call needs them."""

    def __init__(self, slot: Slot, change: Tensor) -> None:
        self._slot, self._change = slot, change
        self._put: tuple[nn.Parameter, Tensor] | None = None  # with its own values
        self._changed: Tensor | None = None
        self._made_of: tuple[int, int, torch.dtype, torch.device] | None = None

    def put(self, generation: int) -> None:
        if self._put is not None:
            return
        parameter = self._slot.parameter
        own = parameter.data
        made_of = (generation, own.data_ptr(), own.dtype, own.device)
        if self._changed is None or made_of != self._made_of:
            self._changed = (own.float() + self._change.to(own.device).float()).to(own.dtype)
            self._made_of = made_of
        self._put, parameter.data = (parameter, own), self._changed

    def take_off(self) -> None:
        if self._put is not None:
            parameter, own = self._put
            parameter.data, self._put = own, None
