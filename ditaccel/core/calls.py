"""How a transformer is called: arguments by name, latents as one tensor.

Pipelines hand their arguments over by position or by name, and latents as one tensor or, as Z-Image
does, as a list with one tensor for each item of the batch, and get lists back. Everything else here
sees one tensor `(B, …)`.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedError
from .patching import unwrapped


def argument_names(module: nn.Module) -> list[str]:
    """Names of the arguments of a module's `forward`, in order.

    A forward that somebody put in place, and that hands on whatever comes (cache-dit), tells
    nothing: then the class knows.
    """
    names = inspect.signature(module.forward).parameters
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in names.values()):
        names = inspect.signature(functools.partial(type(module).forward, module)).parameters
    return list(names)


class Arguments:
    """Looks the arguments of a transformer's calls up by name.

    Args:
        transformer: the transformer.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self._names = argument_names(unwrapped(transformer))

    def get(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], default: Any = None
    ) -> Any:
        """Return an argument of one call, or `default` where it was not given."""
        if name in kwargs:
            return kwargs[name]
        place = self._names.index(name) if name in self._names else len(args)
        return args[place] if place < len(args) else default

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by name."""
        return {**dict(zip(self._names, args, strict=False)), **kwargs}

    def exchanged(
        self, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a call with one of them exchanged."""
        if name in kwargs or name not in self._names[: len(args)]:
            return args, {**kwargs, name: value}
        place = self._names.index(name)
        return (*args[:place], value, *args[place + 1 :]), kwargs


def has_conditions(sample: Any) -> bool:
    """Whether each item of the batch is a list: condition images, then what is denoised."""
    return isinstance(sample, (list, tuple)) and any(isinstance(p, (list, tuple)) for p in sample)


def as_tensor(sample: Any) -> torch.Tensor:
    """Return latents or outputs as one tensor `(B, …)`.

    Args:
        sample: a tensor, or a list of equally shaped ones (or of lists, of which the last item is
            the one that is denoised and the others are conditions).

    Raises:
        UnsupportedError: the items of the batch have different sizes.
    """
    if isinstance(sample, torch.Tensor):
        return sample
    parts = [part[-1] if isinstance(part, (list, tuple)) else part for part in sample]
    if len({part.shape for part in parts}) != 1:
        sizes = ", ".join("x".join(map(str, part.shape)) for part in parts)
        raise UnsupportedError(
            f"the transformer was given latents of different sizes in one call ({sizes}); call the "
            "pipeline once for each size"
        )
    return torch.stack(parts)
