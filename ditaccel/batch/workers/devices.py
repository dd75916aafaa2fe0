"""Which devices the workers of this machine use, and how many workers there are by default."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ...io import given
from .shards import Rank

# What a worker's process holds beside the weights: torch, diffusers and activations.
_PROCESS = 1 << 30
# Starting a process takes seconds: it should have some items to make.
_ITEMS_EACH = 4


def kind_of(device: str, remote: bool = False) -> str:
    """`cpu`, `cuda`, … for a device's text.

    Args:
        device: `auto` takes GPUs where there are some.
        remote: it is another machine's; whether that has one cannot be seen from here.

    Raises:
        UsageError: there is no such device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return given.device_type(device) if remote else torch.device(given.device(device)).type


def _available_memory() -> int:
    """Bytes that new processes may take."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def cpu_workers(items: int, model: str) -> int:
    """Workers of one thread each that a CPU takes by default.

    Several workers beat several threads of one: small matrices do not divide well. Memory and the
    seconds that a process takes to start set the limits.

    Args:
        items: to make.
        model: folder whose size counts once per worker; a Hub id counts as nothing.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    folder = given.path(model)
    weights = sum(p.stat().st_size for p in folder.rglob("*.safetensors")) if folder.is_dir() else 0
    fit = _available_memory() // (_PROCESS + 2 * weights)
    return max(1, min(cores or 1, items // _ITEMS_EACH, fit))


def choose_devices(
    device: str, workers: int | None, rank: Rank, items: int, model: str
) -> tuple[str, ...]:
    """The device of each worker on this machine.

    Args:
        device: such as `cuda:1`, or `auto`.
        workers: None for the default: one per GPU, or one per core of a CPU.
        rank: our place; where a launcher made a process for each device, one worker is ours.
        items: to make.
        model: folder or Hub id.

    Raises:
        UsageError: there is no such device.
    """
    kind = kind_of(device)
    if device not in ("auto", kind):
        return (device,) * max(1, min(workers or 1, items))
    if workers is None and rank.local is not None:
        count = torch.cuda.device_count() if kind == "cuda" else 1
        return (f"cuda:{rank.local % count}" if kind == "cuda" else kind,)
    if kind == "cuda":
        count = torch.cuda.device_count()
        made = max(1, min(workers or count, items))
        return tuple(f"cuda:{index % count}" for index in range(made))
    default = cpu_workers(items, model) if kind == "cpu" else 1
    return (kind,) * max(1, min(workers or default, items))
