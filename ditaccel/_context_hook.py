"""The hook that `_compat` listens through; apart, because it can only be defined with diffusers."""

from __future__ import annotations

from diffusers.hooks.hooks import BaseState, ModelHook, StateManager
from torch import nn


class ContextHook(ModelHook):
    """Stateful, so that diffusers hands it the cache context; holds nothing else."""

    _is_stateful = True

    def __init__(self) -> None:
        super().__init__()
        self.manager = StateManager(BaseState)  # type: ignore[arg-type]

    def reset_state(self, module: nn.Module) -> nn.Module:
        """There is no state to reset."""
        return module
