"""Which backend runs an operation: gates in order, each of which says why not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

import torch

Call = TypeVar("Call")


@dataclass(frozen=True)
class Backend(Generic[Call]):
    """One way to run an operation.

    Attributes:
        name: by which a caller asks for it.
        why_not: returns a sentence that says why this call cannot run here, or None if it can.
        run: carries the call out.
        by_name_only: whether it is never chosen by itself for this call (a reference, an
            interpreter, a compiler that takes its time).
    """

    name: str
    why_not: Callable[[Call], str | None]
    run: Callable[[Call], Any]
    by_name_only: Callable[[Call], bool] = lambda call: False


def reasons(backends: Sequence[Backend[Call]], call: Call) -> dict[str, str | None]:
    """Why each backend cannot run the call, None where it can; in the order of preference."""
    return {backend.name: backend.why_not(call) for backend in backends}


def choose(
    operation: str, backends: Sequence[Backend[Call]], call: Call, name: str | None = None
) -> Backend[Call]:
    """The first backend that can run the call, or the one that was asked for.

    Args:
        operation: its name, for the message.
        backends: in the order of preference.
        call: what is to be run.
        name: of a backend, or None for the first that can.

    Raises:
        ValueError: the backend is unknown or cannot run the call, or none can; with the reasons.
    """
    if name is not None:
        named = {backend.name: backend for backend in backends}
        if name not in named:
            raise ValueError(f"backend must be one of {', '.join(named)}, got {name!r}")
        reason = named[name].why_not(call)
        if reason is not None:
            raise ValueError(f"backend {name!r} cannot run this {operation}: {reason}")
        return named[name]
    for backend in backends:
        if backend.why_not(call) is None and not backend.by_name_only(call):
            return backend
    listed = "; ".join(
        f"{backend.name}: {backend.why_not(call) or 'only when asked for by name'}"
        for backend in backends
    )
    raise ValueError(f"no backend can run this {operation} ({listed})")


def always(call: object) -> bool:
    """For backends that only run when asked for by name."""
    return True


def why_not_triton(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on tensors of this device, None if they can."""
    if not _has_triton():
        return "the package triton is not installed (pip install triton)"
    if device.type == "cuda":
        arch = arch_of(device)
        if isinstance(arch, int) and arch < 80:
            return f"it needs compute capability 8.0 or more, and {device} has {arch / 10}"
        return None
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None if device.type == "cpu" else f"the interpreter does not read {device.type}"
    return (
        f"the tensors are on {device.type}, and Triton needs a CUDA or ROCm device (or "
        "TRITON_INTERPRET=1, set before the first kernel is imported, to try it slowly on a CPU)"
    )


@cache
def arch_of(device: torch.device) -> int | str:
    """What block sizes are chosen by: compute capability times ten, or AMD's name of the chip.

    The interpreter gets what it would on the smallest capability.
    """
    if device.type != "cuda":
        return 80
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def interpreted() -> bool:
    """Whether Triton kernels run in the interpreter, which is for tests only."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def triton_version() -> tuple[int, int]:
    """Major and minor version of the installed Triton; (0, 0) without one."""
    if not _has_triton():
        return (0, 0)
    major, minor = importlib.metadata.version("triton").split(".")[:2]
    return int(major), int(minor)


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
