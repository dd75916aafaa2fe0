"""The door by which diffusers' own caches are put on a pipeline.

Transformers without `CacheMixin` (DiT, PixArt) get the `apply_*` functions and one named context:
their pipelines put all guidance branches into one call, so that one state serves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ditaccel.core.transformers import denoisers_of
from ditaccel.errors import UnsupportedError

from .base import Situation


def _hooked(transformer: nn.Module) -> int:
    registries = (vars(module).get("_diffusers_hook") for module in transformer.modules())
    return sum(bool(registry.hooks) for registry in registries if registry is not None)


def enable(
    pipe: Any,
    situation: Situation,
    make: Callable[[str, nn.Module], Any],
    apply: Callable[[nn.Module, Any], None],
) -> None:
    """Put a cache on every transformer of a pipeline, by the door it has.

    Args:
        pipe: an isolated pipeline.
        situation: of the run.
        make: the cache's config for a component's name and module.
        apply: diffusers' function for transformers without `CacheMixin`.

    Raises:
        UnsupportedError: it would hook nothing, or could not tell the branches apart.
    """
    from diffusers.hooks.hooks import CacheContext, _set_cache_context
    from diffusers.models.cache_utils import CacheMixin

    for name, transformer in denoisers_of(pipe).items():
        config = make(name, transformer)
        if isinstance(transformer, CacheMixin):
            transformer.enable_cache(config)
        elif situation.branches > 1:
            raise UnsupportedError(
                f"{type(transformer).__name__} has no CacheMixin and its pipeline calls it "
                f"{situation.branches} times per step without naming the branch"
            )
        else:
            apply(transformer, config)
            _set_cache_context(transformer, CacheContext(name="all"))
        if not _hooked(transformer):
            raise UnsupportedError(
                f"it hooks no module of {name} ({type(transformer).__name__}): a silent no-op"
            )
