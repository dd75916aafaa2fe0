"""One picture or clip on two GPUs: context parallelism and a cache.

torchrun --nproc-per-node 2 samples/recipes/two_gpus.py Wan-AI/Wan2.1-T2V-14B-Diffusers

Each rank computes half of the tokens. The ranks decide as one: what the cache compares is added up
over both, so neither waits for the other in a step that it skips. (For many pictures,
`ditaccel generate` is faster: it gives each GPU rows of its own.)
"""

from __future__ import annotations

import os
from typing import Any

import shared
import torch
from diffusers import ContextParallelConfig, WanPipeline

import ditaccel


def split(pipe: Any, ranks: int = 2) -> None:
    """Share a pipeline's transformer with the other ranks, and accelerate it."""
    pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=ranks))
    ditaccel.accelerate(pipe, "balanced")


if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl")
    pipe, call, _ = shared.opened(WanPipeline)
    split(pipe, torch.distributed.get_world_size())
    shared.show(pipe, call, f"rank-{rank}")  # both ranks have the whole result
    torch.distributed.destroy_process_group()
