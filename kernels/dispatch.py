"""Which backend runs an operation: gates in order, each of which says why not."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

Call = TypeVar("Call")
P = ParamSpec("P")
R = TypeVar("R")

TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class Backend(Generic[Call]):
    """One way to run an operation.

    Attributes:
        name: by which a caller asks for it.
        why_not: returns a sentence that says why this call cannot run here, or None if it can.
        run: carries the call out.
        backward: computes the gradients, where the operator is a node of autograd's graph; None
            where autograd follows `run`, or where there are no gradients.
        by_name_only: whether it is never chosen by itself (a reference, a compiler that takes its
            time).
    """

    name: str
    why_not: Callable[[Call], str | None]
    run: Callable[[Call], Any]
    backward: Callable[..., Any] | None = None
    by_name_only: bool = False

    @property
    def asked_for_only(self) -> bool:
        """Whether it runs only when asked for by name, as Triton's interpreter does too."""
        return self.by_name_only or (self.name == "triton" and interpreted())


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
        if backend.why_not(call) is None and not backend.asked_for_only:
            return backend
    listed = "; ".join(
        f"{backend.name}: {backend.why_not(call) or 'only when asked for by name'}"
        for backend in backends
    )
    raise ValueError(f"no backend can run this {operation} ({listed})")


def anywhere(call: object) -> str | None:
    """The gate of a backend that runs every call."""
    return None


def why_no_float64(device: torch.device) -> str | None:
    """Why a definition, which computes in float64, cannot run on a device; None if it can."""
    if device.type == "mps":
        return "it computes in float64, which MPS does not have"
    return None


def why_not_triton(
    *tensors: Tensor,
    gradients: bool = False,
    others: Sequence[Tensor] = (),
    max_head_dim: int = MAX_HEAD_DIM,
) -> str | None:
    """Why Triton kernels cannot run on tensors, None if they can.

    Args:
        *tensors: `(B, H, L, D)` that the kernels read as they are; one at least.
        gradients: whether the kernels have a backward.
        others: more tensors of which a gradient may be wanted.
        max_head_dim: largest D.
    """
    reason = why_no_triton_on(tensors[0].device)
    if reason is not None:
        return reason
    for x in tensors:
        if x.dtype not in TRITON_DTYPES:
            return f"it takes {', '.join(str(d)[6:] for d in TRITON_DTYPES)}, not {x.dtype}"
        if interpreted() and x.dtype == torch.bfloat16:
            return "Triton's interpreter multiplies bfloat16 wrongly; use float16 or float32 there"
        if x.shape[3] > max_head_dim:
            return f"the head dimension is at most {max_head_dim}, got {x.shape[3]}"
    followed = torch.is_grad_enabled() and any(x.requires_grad for x in (*tensors, *others))
    if followed and not gradients:
        return "it has no backward; call it under torch.no_grad(), or let plain torch run it"
    return None


def why_no_triton_on(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on a device, None if they can."""
    if not _has_triton():
        return "the package triton is not installed (pip install triton)"
    if device.type == "cuda":
        arch = arch_of(device)
        if isinstance(arch, int) and arch < 80:
            return f"it needs compute capability 8.0 or more, and {device} has {arch / 10}"
        return None
    if interpreted():
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


def own_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function without autocast, which would cast some of its products and not others.

    The dtypes of the arguments alone say how a kernel computes.

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
