"""How many workers, and where."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ditaccel.batch.workers import devices
from ditaccel.batch.workers.devices import choose_devices, cpu_workers, kind_of
from ditaccel.batch.workers.shards import Rank
from ditaccel.errors import UsageError


def gpus(monkeypatch: Any, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def cores(monkeypatch: Any, count: int, memory: int = 1 << 50) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(count)))
    monkeypatch.setattr(devices, "_available_memory", lambda: memory)


@pytest.mark.parametrize(
    ("device", "workers", "rank", "items", "expected"),
    [
        ("auto", None, Rank(), 9, ("cuda:0", "cuda:1")),
        ("auto", None, Rank(), 1, ("cuda:0",)),
        ("auto", 3, Rank(), 9, ("cuda:0", "cuda:1", "cuda:0")),
        ("cuda:1", None, Rank(), 9, ("cuda:1",)),
        ("auto", None, Rank(5, 8, 3, "torchrun"), 9, ("cuda:1",)),
        ("cpu", 2, Rank(), 9, ("cpu", "cpu")),
    ],
)
def test_gpus(monkeypatch: Any, device: str, workers: Any, rank: Rank, items: int, expected: Any):
    gpus(monkeypatch, 2)
    assert choose_devices(device, workers, rank, items, "m") == expected


def test_a_cpu_takes_a_worker_a_core_as_far_as_memory_and_items_go(
    monkeypatch: Any, tmp_path: Path
) -> None:
    gpus(monkeypatch, 0)
    cores(monkeypatch, 4)
    assert choose_devices("auto", None, Rank(), 100, "m") == ("cpu",) * 4
    assert cpu_workers(8, "m") == 2 and cpu_workers(1, "m") == 1
    (tmp_path / "w.safetensors").write_bytes(bytes(1000))
    cores(monkeypatch, 4, memory=3 * (1 << 30))
    assert cpu_workers(100, "m") == 3
    assert cpu_workers(100, str(tmp_path)) == 2
    cores(monkeypatch, 4, memory=0)
    assert cpu_workers(100, "m") == 1
    assert choose_devices("auto", None, Rank(1, 4, 1, "torchrun"), 100, "m") == ("cpu",)


def test_no_such_device(monkeypatch: Any) -> None:
    gpus(monkeypatch, 0)
    with pytest.raises(UsageError, match="no GPU here"):
        kind_of("cuda:3")
    assert kind_of("cuda", remote=True) == "cuda"
    with pytest.raises(UsageError, match="device nonsense"):
        kind_of("nonsense")
