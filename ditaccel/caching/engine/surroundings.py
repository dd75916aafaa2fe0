"""What a gate sees of a transformer outside its blocks: latents on their grid, the timestep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ...core.patching import PatchLedger
from ...errors import UnsupportedError
from ...pipelines import FamilyAdapter, submodule
from .gate import Gate
from .state import Call

_NO_GRID = (
    "this method needs to know where the latents of {0} are in the picture, and nothing tells here "
    "(condition images among them, or a pipeline of one's own); use another caching method"
)


class Surroundings:
    """Shows a gate what it needs of a transformer outside its blocks.

    Args:
        transformer: the transformer.
        adapter: what is known of it.
        gate: decides.

    Raises:
        UnsupportedError: the gate needs what this transformer does not have.
    """

    def __init__(self, transformer: nn.Module, adapter: FamilyAdapter, gate: Gate) -> None:
        self._name, self._adapter = type(transformer).__name__, adapter
        self._config = getattr(transformer, "config", None)
        self._embedding: nn.Module | None = None
        if gate.needs_volume and adapter.packed and adapter.grid_rule is None:
            raise UnsupportedError(_NO_GRID.format(self._name))
        if gate.needs_embedding:
            found = submodule(transformer, adapter.embedding) if adapter.embedding else None
            if found is None:
                raise UnsupportedError(
                    f"this method needs the embedding of the timestep, and {self._name} has none "
                    "that is known; use another caching method"
                )
            self._embedding = found

    def install(self, ledger: PatchLedger, current: Callable[[], Call | None]) -> None:
        """Watch what embeds the timestep, if the gate wants to see that.

        Args:
            ledger: takes note of the patch.
            current: the call in progress, None for none.
        """

        def around(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
            output, call = inner(*args, **kwargs), current()
            if call is not None:
                call.state.embedding = output.detach()
            return output

        if self._embedding is not None:
            ledger.intercept(self._embedding, around)

    def volume(self, latents: torch.Tensor, named: Mapping[str, Any]) -> torch.Tensor:
        """Latents with their places in front of their channels, `(B, …, C)`.

        Args:
            latents: `(B, …)`, as the transformer is given them.
            named: the arguments of its call by name.

        Raises:
            UnsupportedError: nothing tells where they are in the picture.
        """
        volume = self._adapter.volume(self._config, latents, named)
        if volume is None:
            raise UnsupportedError(_NO_GRID.format(self._name))
        return volume.detach()
