"""One file per family: an adapter as plain data, found by the class name of the transformer."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from .adapter import (
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    packed_tokens,
    patch_tokens,
    submodule,
)

__all__ = [
    "AttentionContract",
    "BlockContract",
    "FamilyAdapter",
    "adapter_for",
    "adapters",
    "packed_tokens",
    "patch_tokens",
    "submodule",
]


@cache
def adapters() -> dict[str, FamilyAdapter]:
    """Return all families by name. A new family is a new file in this folder, and nothing else."""
    found: dict[str, FamilyAdapter] = {}
    for module in pkgutil.iter_modules(__path__):
        adapter = getattr(importlib.import_module(f"{__name__}.{module.name}"), "ADAPTER", None)
        if adapter is not None:
            found[adapter.name] = adapter
    return dict(sorted(found.items()))


def adapter_for(transformer_class: str) -> FamilyAdapter | None:
    """Return the family whose transformer class has this name, or None."""
    for adapter in adapters().values():
        if transformer_class in adapter.transformers:
            return adapter
    return None
