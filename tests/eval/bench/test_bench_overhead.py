"""The overhead bench: what it sums, by clocks that the test winds."""

from types import SimpleNamespace

import pytest
import torch
from ditaccel.eval.bench import overhead
from ditaccel.eval.bench.overhead import Clock, dense_twin, fastest, measure, play, record
from tiny import tiny_dit

import ditaccel


@pytest.fixture
def clock(monkeypatch):
    """One clock for CPU time and wall-clock, which only stands still or is wound on."""
    now = SimpleNamespace(seconds=0.0)
    reads = SimpleNamespace(process_time=lambda: now.seconds, perf_counter=lambda: 2 * now.seconds)
    monkeypatch.setattr(overhead, "time", reads)
    return now


@pytest.fixture
def recorded():
    pipe, call = tiny_dit(layers=3)
    return pipe, record(pipe, call, 5)


def test_only_the_fastest_round_counts():
    assert fastest([[(2.0, 9.0), (3.0, 3.0)], [(4.0, 8.0), (1.0, 4.0)]]) == [(2.0, 8.0), (1.0, 3.0)]


def test_modules_take_turns(clock):
    log = []

    def module(name, seconds):
        def call():
            log.append(name)
            clock.seconds += seconds

        return call

    modules = [module("a", 1.0), module("b", 3.0)]
    times = play(modules, [((), {})] * 2, Clock.of(torch.device("cpu")), turn=1)
    assert log == ["b", "a"] * 2
    assert times == [[(1.0, 2.0)] * 2, [(3.0, 6.0)] * 2]


def test_a_twin_shares_weights_and_is_not_accelerated(recorded):
    pipe, calls = recorded
    with ditaccel.accelerated(pipe, "taylorseer:interval=2"):
        twin = dense_twin(pipe.transformer)
        own = dict(pipe.transformer.named_parameters())
        assert all(own[name] is p for name, p in twin.named_parameters())
        args, kwargs = calls[0]
        with torch.no_grad():
            twin(*args, **kwargs)
        assert not ditaccel.report(pipe).calls


def test_ratios_hold_computed_calls_against_the_same_dense_calls(recorded, clock, monkeypatch):
    pipe, calls = recorded
    monkeypatch.setattr(overhead, "METHODS", {"taylorseer (module)": ("interval=1", "interval=3")})
    passed = SimpleNamespace(rounds=0)

    def wind(module, args, output):
        """A round that something else slowed down, and one second for a block."""
        clock.seconds += 1.0 + 5.0 * (passed.rounds % 2)

    for block in pipe.transformer.transformer_blocks:  # the twin takes them over
        block.register_forward_hook(wind)
    real = overhead.play

    def counting_rounds(modules, *args):
        passed.rounds += 1
        return real(modules, *args)

    monkeypatch.setattr(overhead, "play", counting_rounds)
    rows = measure(pipe, calls, 3, Clock.of(torch.device("cpu")), lambda line: None)
    computed, forecast = rows
    assert (computed["step"], computed["calls"], computed["clock"]) == ("computed", 5, "CPU time")
    assert computed["dense_ms"] == computed["method_ms"] == 3000.0
    assert computed["ratio"] == computed["wall_ratio"] == 1.0
    # steps 1, 2 and 4 of 5; at module granularity all blocks are called
    assert (forecast["step"], forecast["calls"], forecast["rounds"]) == ("forecast", 3, 3)
    assert set(overhead.FIELDS) == {"model", *computed}
