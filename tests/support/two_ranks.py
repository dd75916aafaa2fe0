"""One of two ranks that compute a tiny transformer together, by gloo on the CPU.

`main` runs in a process of its own, one per rank.
"""

from __future__ import annotations

import datetime
import os
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tiny import generate, tiny_flux, tiny_wan

import ditaccel


def build(name: str) -> tuple[Any, dict[str, Any]]:
    """`flux` or `wan`, of a size that two ranks can share."""
    pipe, call = {"flux": tiny_flux, "wan": tiny_wan}[name]()
    return pipe, {**call, "height": 64, "width": 64}


def split_over_two(transformer: Any, rank: int) -> None:
    """What `enable_parallelism` does; on a CPU that itself divides by a count of 0 devices."""
    from diffusers import ContextParallelConfig
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ParallelConfig
    from torch.distributed.device_mesh import init_device_mesh

    config = ContextParallelConfig(ulysses_degree=2)
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("ring", "ulysses"))
    config.setup(rank, 2, torch.device("cpu"), mesh)
    both = ParallelConfig(context_parallel_config=config)
    for module in transformer.modules():
        processor = getattr(module, "processor", None)
        if hasattr(processor, "_parallel_config"):
            processor._parallel_config = both
    transformer._parallel_config = both
    apply_context_parallel(transformer, config, transformer._cp_plan)


def run(name: str, spec: str, order: str, rank: int) -> dict[str, Any]:
    """One generation, split before or after `accelerate`."""
    pipe, call = build(name)
    if order == "before":
        split_over_two(pipe.transformer, rank)
    if spec:
        ditaccel.accelerate(pipe, spec)
    if order == "after":
        split_over_two(pipe.transformer, rank)
    result = generate(pipe, call)
    again = generate(pipe, call)
    calls = [] if not spec else ditaccel.report(pipe).last_generation().calls
    if spec:
        ditaccel.restore(pipe)
    return {
        "result": result,
        "repeats": torch.equal(result, again),
        "actions": [c.action for c in calls],
        "errors": [c.error for c in calls],
        "dense": generate(pipe, call),
    }


def main(rank: int, jobs: list[tuple[str, str, str]], folder: Path) -> None:
    """Join the other rank, do the jobs, and write `folder/RANK.pt`.

    Args:
        rank: 0 or 1.
        jobs: model, spec, and whether the transformer is split "before" or "after" `accelerate`.
        folder: where the ranks meet.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(minutes=20),
    )
    torch.save([run(*job, rank) for job in jobs], folder / f"{rank}.pt")
    dist.destroy_process_group()
