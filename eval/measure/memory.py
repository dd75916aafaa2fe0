"""What a method keeps in memory, measured the same way for every row."""

from __future__ import annotations

import gc
import time
from typing import Any

import torch

CPU_MEANING = "tensors kept between transformer calls, beyond the dense run's (bytes)"
CUDA_MEANING = "peak allocated on the device during a generation, weights included (bytes)"
_EVERY = 5


def live_tensor_bytes() -> int:
    """Bytes of all tensors alive in the process, each storage once."""
    sizes: dict[int, int] = {}
    for thing in gc.get_objects():
        # Not isinstance: proxies of other packages answer it with code of their own.
        if issubclass(type(thing), torch.Tensor) and thing.device.type not in ("meta",):
            try:
                storage = thing.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
            except RuntimeError:
                continue  # tensors without a storage (sparse, functional wrappers)
    return sum(sizes.values())


class KeptTensors:
    """Peak of the tensors that stay alive between transformer calls.

    Given to `counted` as `between`, in the warm-up generation only: each look takes tenths of a
    second. The first call is the zero line.

    Attributes:
        peak: most bytes seen above the zero line.
        seconds: what the looking took.
    """

    def __init__(self) -> None:
        self._zero: int | None = None
        self.peak = 0
        self.seconds = 0.0

    def __call__(self, call: int) -> None:
        """Look, if it is this call's turn."""
        start = time.perf_counter()
        if self._zero is None:
            self._zero = live_tensor_bytes()
        elif call % _EVERY == 0:
            self.peak = max(self.peak, live_tensor_bytes() - self._zero)
        self.seconds += time.perf_counter() - start


class DevicePeak:
    """Peak memory of a generation on a CUDA device; None elsewhere."""

    def __init__(self, device: Any) -> None:
        self._device = torch.device(device)
        self._cuda = self._device.type == "cuda" and torch.cuda.is_available()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._device)

    def read(self) -> int | None:
        """Bytes, or None without CUDA."""
        return torch.cuda.max_memory_allocated(self._device) if self._cuda else None
