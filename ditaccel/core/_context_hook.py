"""The hook that `_compat` listens through; apart, because it can only be defined with diffusers."""

from __future__ import annotations

import threading
from typing import Any

from diffusers.hooks.hooks import BaseState, ModelHook, StateManager
from torch import nn


class _OfThisThread(StateManager):
    """Keeps the context that each thread set: several may call one transformer."""

    def __init__(self) -> None:
        self._local = threading.local()
        super().__init__(BaseState)  # type: ignore[arg-type]

    def __reduce__(self) -> Any:
        return type(self), ()  # a copy of the transformer is called by other threads

    @property
    def _context(self) -> Any:
        return getattr(self._local, "context", None)

    @_context.setter
    def _context(self, context: Any) -> None:
        self._local.context = context


class ContextHook(ModelHook):
    """Stateful, so that diffusers hands it the cache context; holds nothing else."""

    _is_stateful = True

    def __init__(self) -> None:
        super().__init__()
        self.manager = _OfThisThread()

    def reset_state(self, module: nn.Module) -> nn.Module:
        """There is no state to reset."""
        return module
