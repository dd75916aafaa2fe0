"""Wall-clock on a GPU ends with its work, not with the queueing; checked here without one."""

from types import SimpleNamespace

import numpy as np
import torch
from ditaccel.eval import counting, timing
from ditaccel.eval.counting import Moment
from ditaccel.eval.sampler import Sampler

from ditaccel import models


class FakePipe:
    """Rests on the CPU and computes on `_execution_device`, as under model offloading."""

    device = torch.device("cpu")

    def __init__(self, events, execution_device):
        self._events, self._execution_device = events, execution_device

    def __call__(self, prompt, num_inference_steps, generator, output_type):
        self._events.append("call")
        return SimpleNamespace(images=np.zeros((1, 4, 4, 3), np.float32))


def timed(monkeypatch, device):
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda d=None: events.append(f"wait for {d}"))
    clock = SimpleNamespace(
        perf_counter=lambda: events.append("clock") or 0.0, process_time=lambda: 0.0
    )
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(timing.Stopwatch, "_event", lambda self: None)
    pipe = FakePipe(events, torch.device(device))
    Sampler(pipe, {}, 4).generate(pipe, "a", 0)
    return events


def test_both_ends_of_a_generation_wait_for_the_device(monkeypatch):
    wait = "wait for cuda:1"
    assert timed(monkeypatch, "cuda:1") == [wait, "clock", "call", wait, "clock"]


def test_nothing_waits_on_a_cpu(monkeypatch):
    assert timed(monkeypatch, "cpu") == ["clock", "call", "clock"]


def test_where_an_offloaded_pipeline_computes():
    pipe = FakePipe([], torch.device("cuda", 0))
    assert models.execution_device(pipe) == torch.device("cuda", 0)
    assert models.execution_device(SimpleNamespace(device="cpu")) == torch.device("cpu")


def test_moments_on_a_gpu_are_events_of_its_stream(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            log.append(stream)

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, end):
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    module = torch.nn.Linear(1, 1)
    module._hf_hook = SimpleNamespace(execution_device=torch.device("cuda", 1))
    first, last = Moment(module), Moment(module)
    assert log == ["stream of cuda:1"] * 2  # recording does not wait
    assert last.since(first) == 0.25 and log[2:] == ["wait"]


def test_moments_elsewhere_are_the_clock(monkeypatch):
    ticks = iter([3.0, 4.5])
    monkeypatch.setattr(counting.time, "perf_counter", lambda: next(ticks))
    module = torch.nn.Linear(1, 1)
    first, last = Moment(module), Moment(module)
    assert last.since(first) == 1.5
