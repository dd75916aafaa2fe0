"""Changes of a transformer's weights that are in place while calls need them, and only then."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .own_weights import Slot, cannot_change, own_weights, slots_of

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


class WeightChanges:
    """Changes of the weights of one transformer.

    Args:
        name: component name of the transformer.
        transformer: the module.
        changes: parameter name -> what is added to it.
        source: where they come from, for messages.

    Raises:
        ConfigError: its weights cannot be changed where they are.
    """

    def __init__(
        self, name: str, transformer: nn.Module, changes: Mapping[str, Tensor], source: str
    ) -> None:
        self._name, self._transformer = name, transformer
        self._changes, self._source = changes, source
        self._swaps: list[_Swap] = []
        self._followed: int | None = None
        self._follow(-1)

    def _follow(self, generation: int) -> None:
        """Find the weights once a generation: modules may have been wrapped, fused, exchanged."""
        if self._followed == generation:
            return
        slots, missing = slots_of(self._transformer, self._changes)
        if missing:
            raise ConfigError(
                f"{self._source} changes weights that {self._name} does not have any more, "
                f"{missing[0]} to begin with; load the model it was trained for"
            )
        for slot, _ in slots:
            why = cannot_change(slot)
            if why:
                raise ConfigError(f"{self._source} cannot be applied: {self._name}'s weights {why}")
        self._swaps = [_Swap(slot, change) for slot, change in slots]
        self._followed = generation

    def put(self, generation: int) -> None:
        """Put the changes in place; they are worked out again for each generation, since the
        transformer's own weights may have been moved, or had an adapter fused into them.

        Raises:
            ConfigError: its weights cannot be changed where they are now.
        """
        self._follow(generation)
        for swap in self._swaps:
            swap.put(generation)

    def take_off(self) -> None:
        """Put the transformer's own weights back."""
        for swap in self._swaps:
            swap.take_off()


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
