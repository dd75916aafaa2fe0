"""What a transformer call is conditioned on, and which part of the latents it gets.

Guidance branches without a name are told apart by their conditioning: by the identity of its
tensors, and only where a tensor is new by a few numbers of its values, copied to the host once.
Windows and tiles have the same conditioning; where they are views of the latents, their place in
them tells them apart.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Arguments that differ between guidance branches. Others (masks, positions, residuals of a
# ControlNet) differ between steps, windows, or not at all.
_CONDITIONS = re.compile(
    "encoder_hidden_states|embed|pooled|prompt|caption|cap_feats|class_labels|input_ids|context"
    "|prior_token|global_hidden|siglip|skip_layers|guidance_blocks|isolate"
)
_NOT = re.compile("mask|controlnet|time|rope|cache")


@dataclass(frozen=True)
class Traits:
    """What tells a transformer call from others of its step.

    Attributes:
        condition: fingerprint of the conditioning, None where the call has none.
        place: where the latents that it gets lie in larger ones, None where they are whole.
        sample: these latents.
    """

    condition: Hashable = None
    place: Hashable = None
    sample: Tensor | None = None


class Conditions:
    """Takes fingerprints of calls; remembers those of tensors for as long as the tensors live."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, int | None, dict[Any, Hashable]]] = {}

    def traits(self, named: Mapping[str, Any], samples: tuple[str, ...]) -> Traits:
        """Look at a call.

        Args:
            named: its arguments by name.
            samples: names of those that carry latents.
        """
        found: list[tuple[str, Hashable]] = []
        fresh: list[tuple[int, Tensor]] = []
        for name, value in named.items():
            if name in samples or not _CONDITIONS.search(name) or _NOT.search(name):
                continue
            for part in _parts(value):
                if not isinstance(part, Tensor):
                    found.append((name, part))
                    continue
                known = self._recall(part)
                if known is None:
                    fresh.append((len(found), part))
                found.append((name, known))
        if fresh:
            for (place, part), values in zip(fresh, _values([p for _, p in fresh]), strict=True):
                digest = (part.shape, part.dtype, values)
                self._remember(part, digest)
                found[place] = (found[place][0], digest)
        sample = named.get(samples[0])
        whole = sample if isinstance(sample, Tensor) else None
        return Traits(tuple(found) or None, None if whole is None else _place(whole), whole)

    def _recall(self, tensor: Tensor) -> Hashable:
        whole = _whole(tensor)
        known = self._known.get(id(whole))
        if known is None or known[0]() is not whole or known[1] != _version(whole):
            return None
        return known[2].get(_part_of(tensor))

    def _remember(self, tensor: Tensor, digest: Hashable) -> None:
        whole = _whole(tensor)
        key, version = id(whole), _version(whole)
        known = self._known.get(key)
        if known is None or known[0]() is not whole or known[1] != version:
            forget = _Forget(self._known, key)
            known = self._known[key] = (weakref.ref(whole, forget), version, {})
        known[2][_part_of(tensor)] = digest


class _Forget:
    """Drops what is known of a tensor that has died."""

    def __init__(self, known: dict[int, Any], key: int) -> None:
        self._known, self._key = known, key

    def __call__(self, reference: Any) -> None:
        # (another tensor may have its address by now)
        known = self._known.get(self._key)
        if known is not None and known[0] is reference:
            del self._known[self._key]


def _parts(value: Any) -> Iterator[Any]:
    """Tensors and plain values in an argument."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _parts(part)
    elif isinstance(value, Mapping):
        for key in value:
            yield from _parts(value[key])
    elif isinstance(value, (Tensor, str, int, float, bool)):
        yield value


def _whole(tensor: Tensor) -> Tensor:
    """The tensor that a view is one of: new views are often made at each call."""
    base = tensor._base
    return tensor if base is None else base


def _part_of(tensor: Tensor) -> Hashable:
    strided = tensor.layout is torch.strided
    place = (tensor.storage_offset(), tensor.stride()) if strided else ()
    return (*place, tensor.shape, tensor.dtype)


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _place(sample: Tensor) -> Hashable:
    base = sample._base
    if base is None or base.numel() <= sample.numel():
        return None
    return (sample.storage_offset(), sample.shape)


def _values(tensors: list[Tensor]) -> list[Hashable]:
    """A few numbers of each tensor; waits for each device once."""
    figures: list[Any] = []
    for tensor in tensors:
        if tensor.device.type == "meta" or not tensor.numel():
            figures.append(None)
            continue
        flat = tensor.detach().float().flatten()
        sums = [flat.sum(), flat[::2].sum(), flat[::3].sum(), flat[::7].abs().sum()]
        figures.append(torch.stack([*sums, flat.square().sum()]))
    copied: dict[torch.device, Iterator[list[float]]] = {}
    for device in {f.device for f in figures if f is not None}:
        own = [f for f in figures if f is not None and f.device == device]
        copied[device] = iter(torch.stack(own).tolist())
    # (as text: NaN is not equal to itself)
    return [None if f is None else repr(next(copied[f.device])) for f in figures]
