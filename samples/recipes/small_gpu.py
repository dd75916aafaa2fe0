"""A model that does not fit the GPU: group offload and a cache.

python samples/recipes/small_gpu.py

Blocks come to the GPU when they run and leave it afterwards. A forecast step runs no block, so it
moves none either: with offloading, a cache saves the transfers as well.
"""

from __future__ import annotations

from typing import Any

import shared
import torch
from diffusers import FluxPipeline

import ditaccel


def offloaded(pipe: Any, device: torch.device, memory_budget: str = "500MB") -> None:
    """Offload the transformer's blocks, and let the cache hold no more than a budget.

    Args:
        pipe: a pipeline.
        device: where it computes.
        memory_budget: most that the cache may hold there; a run that needs more is refused before
            it grows.
    """
    pipe.transformer.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )
    ditaccel.accelerate(pipe, "balanced", memory_budget=memory_budget)


if __name__ == "__main__":
    pipe, call, _ = shared.opened(FluxPipeline)
    offloaded(pipe, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    shared.show(pipe, call, "offloaded")
