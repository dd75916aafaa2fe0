"""Kernels under `torch.autocast`: the dtypes of their arguments say how they compute."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def own_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function without autocast, which would cast some of its products and not others.

    Args:
        function: its first argument is a tensor, on the device that counts.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        given: tuple[Any, ...] = args or tuple(kwargs.values())
        first = given[0]
        if not isinstance(first, Tensor) or not torch.is_autocast_enabled(first.device.type):
            return function(*args, **kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return function(*args, **kwargs)

    return run
