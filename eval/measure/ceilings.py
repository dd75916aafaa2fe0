"""What a device can do at most, measured: operations of matrix products, bytes moved by copies.

No generation can be faster than its floor: the time of its operations at the one ceiling, or of
reading the weights that it uses at the other, whichever is longer (the roofline model; Williams,
Waterman and Patterson 2009). The distance to it says how much better code could still gain; it says
nothing about the speed of a method.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ditaccel.core.transformers import denoisers_of
from ditaccel.io.models import execution_device

from .timing import wait_for

# Sides of the square products, of which the fastest counts: small ones do not fill a device, large
# ones take too long on a CPU.
_SIDES = {"cpu": (256, 512), "cuda": (2048, 4096, 8192)}
_TRIES = 20
# What is copied: at least so much, so that a clock can tell, and at most so much.
_LEAST, _MOST = 1 << 20, 1 << 30
_ATEN = torch.ops.aten
_OF_WEIGHTS = {_ATEN.mm, _ATEN.addmm, _ATEN._scaled_mm, _ATEN.convolution, _ATEN._convolution}


@dataclass(frozen=True)
class Ceilings:
    """The most that a device has done in this process.

    Attributes:
        flops: floating-point operations per second, in matrix products of the run's dtype.
        bytes: bytes read and written per second, in a copy as large as the model's weights: what
            fits into a cache is faster there too.
        copied: bytes of that copy.
        itemsize: bytes of a number of the run's dtype.
    """

    flops: float
    bytes: float
    copied: int
    itemsize: int

    def floor(self, flops: float, moved: float) -> float:
        """Seconds that so many operations and bytes take at least."""
        return max(flops / self.flops, moved / self.bytes)

    def to_dict(self) -> dict[str, Any]:
        """As `run.json` holds it."""
        return asdict(self)


def _fastest(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of some tries; other work on the machine can only slow one down.

    One thread of a CPU is timed by the clock of the process, which other work does not stretch.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    work()
    found = math.inf
    for _ in range(_TRIES):
        wait_for(device)
        begin = clock()
        work()
        wait_for(device)
        found = min(found, clock() - begin)
    return max(found, 1e-9)


def ceilings_of(pipe: Any) -> Ceilings | None:
    """The ceilings of the device that a pipeline runs on, at its transformers' dtype.

    They are measured once per process. None where the dtype has no matrix product (quantised
    weights), the device has no memory to spare for it, or there is no transformer.
    """
    weights = [p for part in denoisers_of(pipe).values() for p in part.parameters()]
    if not weights:
        return None
    dtype = max(weights, key=lambda weight: weight.numel()).dtype
    if not dtype.is_floating_point or dtype.itemsize < 2:
        return None
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    try:
        return measured(execution_device(pipe), dtype, size, torch.get_num_threads())
    except RuntimeError:  # out of memory: a run does not end for a figure at its side
        return None


@cache
def measured(device: torch.device, dtype: torch.dtype, weights: int, threads: int) -> Ceilings:
    """Measure a device.

    Args:
        device: where.
        dtype: of the matrix products.
        weights: bytes to copy: as many as the model's transformers have.
        threads: of the CPU, which are set already; what was measured with others does not count.
    """
    flops = 0.0
    for side in _SIDES.get(device.type, _SIDES["cpu"]):
        a = torch.ones(side, side, device=device, dtype=dtype)
        out = torch.empty_like(a)
        seconds = _fastest(partial(torch.mm, a, a, out=out), device)
        flops = max(flops, 2 * side**3 / seconds)
    size = min(max(weights, _LEAST), _MOST)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    moved = 2 * size / _fastest(partial(target.copy_, source), device)
    return Ceilings(flops, moved, size, dtype.itemsize)


def _attention_flops(args: tuple[Any, ...]) -> float:
    """Of two products of (…, L, D) with (…, S, D)."""
    query, key, value = args[:3]
    batch = math.prod(query.shape[:-2])
    length, keys = query.shape[-2], key.shape[-2]
    return 2.0 * batch * length * keys * (query.shape[-1] + value.shape[-1])


class CountedFlops(TorchDispatchMode):
    """Counts floating-point operations of matrix products, convolutions and attention.

    Attributes:
        total: so far.
        attention: those of them that sparse attention may leave out: every product whose factors
            are both activations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = self.attention = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and add what it counts."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        kind, flops = func._overloadpacket, 0.0
        if (count := flop_registry.get(kind)) is not None:
            flops = float(count(*args, **kwargs, out_val=out))
        elif kind is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            flops = _attention_flops(args)
        self.total += flops
        if kind not in _OF_WEIGHTS:
            self.attention += flops
        return out
