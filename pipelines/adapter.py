"""What ditaccel must know of a family, as plain data. A family is one file with one `ADAPTER`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BlockContract:
    """How the blocks of one container are called and what they return.

    Attributes:
        container: attribute of the transformer that holds the blocks.
        hidden: argument that carries the image or video tokens `(B, L, C)`.
        encoder: argument that carries the text tokens where the block returns them too.
        returns: order of the outputs, of `hidden` and `encoder`; one name for a bare tensor.
        forecast_modules: submodules whose outputs TaylorSeer forecasts at module granularity.
        idle_modules: submodules whose outputs only feed forecast ones, and need not run then.
    """

    container: str
    hidden: str = "hidden_states"
    encoder: str | None = None
    returns: tuple[str, ...] = ("hidden",)
    forecast_modules: tuple[str, ...] = ()
    idle_modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class FamilyAdapter:
    """One family of pipelines.

    Attributes:
        name: the family's name.
        transformers: class names of its transformers.
        blocks: contracts of the block containers, in the order in which they run.
        presets: preset name -> config as `AccelerationConfig.to_dict` writes it.
        timestep: argument of the transformer that carries the timestep.
        sample: argument of the transformer that carries the latents.
        guidance: `sequential` (one call per branch) or `batched` (branches side by side).
    """

    name: str
    transformers: tuple[str, ...]
    blocks: tuple[BlockContract, ...]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    timestep: str = "timestep"
    sample: str = "hidden_states"
    guidance: str = "sequential"
