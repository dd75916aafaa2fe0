"""Wall-clock on a GPU ends with its work, not with the queueing; checked here without one."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ditaccel.eval.comparison.sampler import Sampler
from ditaccel.eval.measure import counting, timing
from ditaccel.eval.measure.counting import Moment

from ditaccel.io import models


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


def test_a_stopwatch_on_a_gpu_reads_events_between_two_waits(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            log.append("event")

        def elapsed_time(self, end):
            return 1500.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: log.append("wait"))
    took = timing.Stopwatch(torch.device("cuda", 0)).stop()
    assert log == ["wait", "event", "event", "wait"]
    assert (took.device, took.own, took.process) == (1.5, 1.5, None)


def test_a_stopwatch_on_a_cpu_tells_work_from_waiting():
    watch = timing.Stopwatch(torch.device("cpu"))
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    took = watch.stop()
    assert took.device is None and took.own == took.process
    assert took.process is not None and 0.05 <= took.process <= took.seconds + 0.02


def test_where_the_run_queue_is_not_told_absence_is(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "_TASKS", tmp_path / "none")
    assert timing.run_queue_waits() is None
    (tmp_path / "7").mkdir()
    monkeypatch.setattr(timing, "_TASKS", tmp_path)
    assert timing.run_queue_waits() is None  # a kernel without these figures
    (tmp_path / "7" / "schedstat").write_text("5 2500000000 3\n")
    assert timing.run_queue_waits() == {"7": 2.5}
    assert timing.Timing(1.0, 0.6).waited and not timing.Timing(1.0, 0.98).waited
    assert timing.Timing(1.0, 1.9).waited is None  # two threads: nothing can be told
    assert timing.Timing(1.0, 0.6, None, 0.01).waited is False  # it slept, nobody was in its way


def test_the_least_that_a_generation_can_take():
    """Parameters do not say what a layer takes; the layer that ran least bounds the rest."""
    weights = {("a", 0): 10.0, ("a", 1): 30.0, ("b", 0): 40.0}
    dense = counting.Tally(layers={("a", 0): 10, ("a", 1): 10, ("b", 0): 10}, weights=weights)
    half = counting.Tally(layers={("a", 0): 10, ("a", 1): 5, ("b", 0): 5}, weights=weights)
    assert half.least_share(dense) == pytest.approx(0.5)
    one = counting.Tally(layers={("a", 0): 2, ("a", 1): 4, ("b", 0): 10}, weights=weights)
    assert one.least_share(dense) == pytest.approx(0.5 * 0.2 + 0.5 * 1.0)
    assert counting.Tally(weights=weights).least_share(dense) == 0.0
    assert counting.Tally(weights={("c", 0): 1.0}).least_share(dense) is None
    assert dense.least_share(counting.Tally()) is None
