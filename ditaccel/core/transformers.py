"""The family of a transformer, known or recognised."""

from __future__ import annotations

from torch import nn

from ..errors import UnsupportedError
from ..pipelines import FamilyAdapter, adapter_for, adapters
from ..pipelines.auto import NotRecognisedError, recognise
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
