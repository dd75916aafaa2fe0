"""The transformers of a pipeline, and the family of each: the one place that finds them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import ConfigError, UnsupportedError, UsageError
from ..pipelines import FamilyAdapter, adapter_for, adapters
from ..pipelines.auto import NotRecognisedError, recognise
from ..pipelines.schedules import recognised
from .kinds import source_of
from .patching import unwrapped


def known_family(module: nn.Module) -> FamilyAdapter | None:
    """Return the family whose transformer this is, compiled or not; None for another module."""
    return adapter_for(type(unwrapped(module)).__name__)


def family_of(transformer: nn.Module) -> FamilyAdapter:
    """Return the family of a transformer, or what can be told of one of no known family.

    Raises:
        UnsupportedError: it is of no known family, and takes no timestep or no latents.
    """
    try:
        return known_family(transformer) or recognise(unwrapped(transformer))
    except NotRecognisedError as error:
        raise UnsupportedError(
            f"{error}; it is of no family that ditaccel knows ({', '.join(adapters())})"
        ) from None


def modules_of(pipe: Any) -> dict[str, nn.Module]:
    """All modules of a pipeline by name; a bare transformer is its own only component.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(pipe, nn.Module):
        return {"transformer": pipe}
    components = getattr(pipe, "components", None)
    if not isinstance(components, dict):
        raise UsageError(
            f"{type(pipe).__name__} is neither a diffusers pipeline nor a transformer module"
        )
    return {name: part for name, part in components.items() if isinstance(part, nn.Module)}


def denoisers_of(pipe: Any) -> dict[str, nn.Module]:
    """What a pipeline calls at every step: transformers of any family, or UNets.

    Raises:
        UsageError: it is neither a pipeline nor a module.
    """
    parts = modules_of(pipe)
    if isinstance(pipe, nn.Module):
        return parts
    return {
        name: part
        for name, part in parts.items()
        if name.split("_")[0] in ("transformer", "unet") or known_family(part) is not None
    }


def transformers_of(
    pipe: Any, adapter: FamilyAdapter | None = None
) -> tuple[dict[str, nn.Module], FamilyAdapter]:
    """Find what can be accelerated.

    Args:
        pipe: a pipeline, or a bare transformer.
        adapter: of the transformers, where the caller knows them; by default that of their family.

    Returns:
        The transformers by component name, those of known families where there are any, and the
        adapter of the first.

    Raises:
        UnsupportedError: there is none, or one of which too little can be told.
        UsageError: it is neither a pipeline nor a module.
    """
    parts = modules_of(pipe)
    if adapter is not None:
        return _described(pipe, parts, adapter), adapter
    found = {n: p for n, p in parts.items() if known_family(p) is not None}
    if not found:
        bare = isinstance(pipe, nn.Module)
        found = {n: p for n, p in parts.items() if n.startswith("transformer") or bare}
    unet = next((type(p).__name__ for n, p in (found or parts).items() if _is_unet(n, p)), None)
    if unet is not None or not found:
        raise UnsupportedError(
            f"{_lacking(pipe, unet)}; ditaccel accelerates diffusion transformers: "
            f"{', '.join(adapters())}, and others whose component is called 'transformer'"
        )
    return found, family_of(next(iter(found.values())))


def with_checkpoint(
    pipe: Any, transformers: dict[str, nn.Module], adapter: FamilyAdapter
) -> FamilyAdapter:
    """The adapter of a pipeline, which knows which published checkpoint the pipeline holds.

    Args:
        pipe: a pipeline, or a bare transformer.
        transformers: of it, by component name.
        adapter: of their family.
    """
    first = unwrapped(next(iter(transformers.values())))
    config = getattr(first, "config", None) or {}
    name = source_of(pipe) or source_of(first)
    found = recognised(
        adapter.name,
        name,
        config,
        pipeline="" if isinstance(pipe, nn.Module) else type(pipe).__name__,
        transformers=len(transformers),
        is_folder=bool(name) and Path(name).exists(),
    )
    return replace(adapter, checkpoint=found)


def _described(
    pipe: Any, parts: dict[str, nn.Module], adapter: FamilyAdapter
) -> dict[str, nn.Module]:
    """The modules that a given adapter is of: a bare one is, whatever its class is called."""
    if not isinstance(adapter, FamilyAdapter):
        raise ConfigError(
            f"adapter is of type {type(adapter).__name__}; give a ditaccel.FamilyAdapter"
        )
    classes = adapter.transformers
    found = {n: p for n, p in parts.items() if type(unwrapped(p)).__name__ in classes}
    if isinstance(pipe, nn.Module):
        found = parts
    if not found:
        raise UnsupportedError(
            f"{type(pipe).__name__} has no component of a class that the adapter {adapter.name!r} "
            f"names as its transformers: {', '.join(classes) or 'none'}"
        )
    for name, part in found.items():
        for contract in adapter.blocks:
            if not isinstance(getattr(unwrapped(part), contract.container, None), nn.ModuleList):
                raise UnsupportedError(
                    f"{name} ({type(unwrapped(part)).__name__}) has no list of blocks called "
                    f"{contract.container!r}, which the adapter {adapter.name!r} names"
                )
    return found


def _is_unet(name: str, module: nn.Module) -> bool:
    """Whether a denoiser narrows and widens: blocks of a UNet cannot stand for each other."""
    module = unwrapped(module)
    named = name.startswith("unet") or type(module).__name__.startswith("UNet")
    return named or (hasattr(module, "down_blocks") and hasattr(module, "up_blocks"))


def _lacking(pipe: Any, unet: str | None) -> str:
    kind = type(pipe).__name__
    if isinstance(pipe, nn.Module):
        return f"{kind} is a UNet"
    return f"{kind} has " + (
        "no transformer" if unet is None else f"a UNet ({unet}) and no transformer"
    )
