"""What transformers return, taken apart and put together: one stream of latents, or more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .calls import as_tensor


def tensors_of(output: Any, count: int = 1) -> list[Tensor]:
    """The first `count` samples that a transformer returned: bare, in a tuple or in a dataclass.

    One that comes as a list with a tensor for each item of the batch is one tensor here.
    """
    if isinstance(output, Tensor):
        return [output]
    return [as_tensor(output[i]) for i in range(count)]


def with_tensors(output: Any, tensors: Sequence[Tensor]) -> Any:
    """What a transformer returned, its first samples exchanged."""
    if isinstance(output, Tensor):
        return tensors[0]
    parts = [_listed(tensor, output[i]) for i, tensor in enumerate(tensors)]
    if isinstance(output, tuple):
        return (*parts, *output[len(parts) :])
    for name, part in zip(list(output.keys()), parts, strict=False):
        setattr(output, name, part)
    return output


def _listed(tensor: Tensor, like: Any) -> Any:
    return list(tensor.unbind()) if isinstance(like, (list, tuple)) else tensor


def form_of(
    output: Any, count: int = 1, given: Sequence[Any] = ()
) -> Callable[[Sequence[Tensor]], Any] | None:
    """How to make such an output of `count` samples; None where it holds more than them.

    Args:
        output: of a transformer. Behind its samples, a tuple may hold places for more, in which
            nothing is, and arguments that it hands back (a cache of keys and values).
        count: of samples.
        given: arguments of the call.
    """
    if isinstance(output, Tensor):
        return lambda tensors: tensors[0]
    kind = type(output)
    names = None if isinstance(output, tuple) else list(output.keys())
    behind = () if names is not None else output[count:]
    if len(output) - len(behind) != count or not all(
        each is None or any(each is argument for argument in given) for each in behind
    ):
        return None
    listed: list[Any] = [[] if isinstance(output[i], (list, tuple)) else None for i in range(count)]

    def form(tensors: Sequence[Tensor]) -> Any:
        parts = [_listed(tensor, like) for tensor, like in zip(tensors, listed, strict=True)]
        return (*parts, *behind) if names is None else kind(**dict(zip(names, parts, strict=True)))

    return form


def join(streams: Sequence[Tensor]) -> Tensor:
    """Streams `(B, …)` as one tensor `(B, N)`; a single one as it is.

    All forecasts and corrections are weighted sums, which a flat tensor serves as well.
    """
    if len(streams) == 1:
        return streams[0]
    return torch.cat([stream.flatten(1) for stream in streams], 1)


def split(joined: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Streams of these shapes out of what `join` made of them."""
    if len(shapes) == 1:
        return [joined]
    parts = joined.split([shape[1:].numel() for shape in shapes], 1)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def all_finite(values: torch.Tensor) -> torch.Tensor:
    """Whether all values are finite, as a 0-d tensor on their device."""
    # NaN goes through to both ends; a mask of all values costs twenty times a copy of them
    low, high = torch.aminmax(values)
    return torch.isfinite(low) & torch.isfinite(high)
