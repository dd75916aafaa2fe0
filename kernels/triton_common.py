"""What launches of Triton kernels share; imports no Triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

# Capabilities whose programs may take 99 KiB of shared memory, where others have 163 or more.
SMALL_SHARED = (86, 89, 120, 121)


@dataclass(frozen=True)
class Launch:
    """How a kernel is built: compile-time flags, warps of a program and stages of its pipeline.

    The stages are Triton's default where they are None.
    """

    flags: dict[str, Any]
    warps: int
    stages: int | None = None

    @property
    def build_options(self) -> dict[str, int]:
        """What is not a flag."""
        stages = {} if self.stages is None else {"num_stages": self.stages}
        return {"num_warps": self.warps, **stages}

    @property
    def options(self) -> dict[str, Any]:
        """What a launch is handed."""
        return {**self.flags, **self.build_options}


def block_of(size: int) -> int:
    """The power of two that holds a size, at least the 16 that a matrix product needs."""
    return max(16, 1 << (size - 1).bit_length())


def shared_strides(tensor: Tensor | None, leading: int) -> list[int]:
    """Strides of the leading dimensions, 0 where a dimension (or all) is shared."""
    if tensor is None:
        return [0] * leading
    sizes, strides = tensor.shape[:leading], tensor.stride()[:leading]
    return [0 if n == 1 else stride for n, stride in zip(sizes, strides, strict=True)]
