"""One file per family: an adapter as plain data, found by the class name of the transformer.

A family of your own takes one call, in a script, a notebook or an installed plugin:

    from ditaccel.pipelines import BlockContract, FamilyAdapter, adaptive_presets, register_family

    register_family(
        FamilyAdapter(
            name="my_model",
            transformers=("MyTransformer2DModel",),
            blocks=(BlockContract("blocks"),),
            presets=adaptive_presets(),
        )
    )
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from functools import cache

from ..errors import ConfigError
from ..plugins import load_plugins
from .adapter import (
    AUTO_STEPS,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    ScaleShift,
    adaptive_presets,
    packed_tokens,
    patch_tokens,
    submodule,
)

__all__ = [
    "AUTO_STEPS",
    "AttentionContract",
    "BlockContract",
    "FamilyAdapter",
    "ScaleShift",
    "adapter_for",
    "adapters",
    "adaptive_presets",
    "packed_tokens",
    "patch_tokens",
    "register_family",
    "submodule",
]

# Families from outside this folder, and the module that registered each.
_REGISTERED: dict[str, tuple[FamilyAdapter, str]] = {}


@cache
def _own() -> dict[str, FamilyAdapter]:
    """The families of this folder: each module with an `ADAPTER`."""
    found: dict[str, FamilyAdapter] = {}
    for module in pkgutil.iter_modules(__path__):
        adapter = getattr(importlib.import_module(f"{__name__}.{module.name}"), "ADAPTER", None)
        if adapter is not None:
            found[adapter.name] = adapter
    return found


def register_family(adapter: FamilyAdapter) -> FamilyAdapter:
    """Make a family known: its transformers are then accelerated like those of this folder.

    A module may register its family again: a cell of a notebook that runs twice does. To use an
    adapter for one pipeline only, give it to `accelerate` as `adapter=`.

    Args:
        adapter: what ditaccel must know of the family.

    Returns:
        The same adapter.

    Raises:
        ConfigError: its name or one of its transformers is another family's, or it is no adapter.
    """
    owner = sys._getframe(1).f_globals.get("__name__", "?")
    _check(adapter, owner)
    _REGISTERED[adapter.name] = (adapter, owner)
    return adapter


def _check(adapter: FamilyAdapter, owner: str) -> None:
    """Refuse an adapter under which no transformer, or another family's, would be found."""
    if not isinstance(adapter, FamilyAdapter):
        raise ConfigError(
            f"register_family takes a FamilyAdapter, not a value of type {type(adapter).__name__}"
        )
    said = f"family {adapter.name!r}"
    known = {name: (each, f"{__name__}.{name}") for name, each in _own().items()} | _REGISTERED
    if adapter.name in known and known[adapter.name][1] != owner:
        raise ConfigError(
            f"{said}: this name is taken by {known[adapter.name][1]}; choose another name"
        )
    names = adapter.transformers
    if not isinstance(names, tuple) or not names or not all(isinstance(n, str) for n in names):
        raise ConfigError(
            f"{said}: transformers is {names!r}; give a tuple of class names, such as "
            "('MyTransformer2DModel',)"
        )
    for name, (other, _) in known.items():
        shared = sorted(set(names) & set(other.transformers))
        if shared and name != adapter.name:
            raise ConfigError(
                f"{said}: the transformer {shared[0]} belongs to the family {name!r}; to use this "
                "adapter in its place for one pipeline, give accelerate adapter=…"
            )


def adapters() -> dict[str, FamilyAdapter]:
    """Return all families by name, those registered just now included."""
    load_plugins()
    others = {name: adapter for name, (adapter, _) in _REGISTERED.items()}
    return dict(sorted({**_own(), **others}.items()))


def adapter_for(transformer_class: str) -> FamilyAdapter | None:
    """Return the family whose transformer class has this name, or None."""
    for adapter in adapters().values():
        if transformer_class in adapter.transformers:
            return adapter
    return None
