"""A second pipeline over the same weights, so that a peer's patches cannot touch the first.

Some peers patch the pipeline's class, or leave state behind. The copy has its own module tree,
scheduler and class, and shares only parameters and buffers: whatever is done to it, the original
stays bit-exact, and throwing it away throws the peer's state away.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from ditaccel.core.transformers import denoisers_of
from ditaccel.errors import UnsupportedError


def _share_weights(module: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {}
    for tensors in (module.parameters(), module.buffers()):
        memo.update((id(tensor), tensor) for tensor in tensors)
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        # Hooks, compiled graphs and quantised tensors each refuse in their own way.
        raise UnsupportedError(
            "a peer runs on a copy of the transformer, and this one cannot be copied (offloaded, "
            f"compiled or quantised: {type(error).__name__}); measure peers on the plain pipeline"
        ) from error


def isolated(pipe: Any) -> Any:
    """A copy of a pipeline with its own transformers, scheduler and class, sharing the weights.

    Args:
        pipe: a diffusers pipeline without any acceleration on it.

    Returns:
        The copy; its class is a subclass of the original's under the same name, because peers tell
        families apart by name.
    """
    twin = copy.copy(pipe)
    cls = type(pipe)
    twin.__class__ = type(cls.__name__, (cls,), {"__module__": cls.__module__})
    for name, transformer in denoisers_of(pipe).items():
        setattr(twin, name, _share_weights(transformer))
    twin.scheduler = copy.deepcopy(pipe.scheduler)
    return twin
