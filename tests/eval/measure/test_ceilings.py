"""Ceilings of a device and counted operations: against numbers worked out by hand."""

from types import SimpleNamespace

import pytest
import torch
from ditaccel.eval.measure import ceilings
from ditaccel.eval.measure.ceilings import Ceilings, CountedFlops
from ditaccel.eval.summary.limits import Limits
from torch.nn import functional

CPU = torch.device("cpu")


def test_the_floor_is_the_longer_of_both_times() -> None:
    found = Ceilings(flops=100.0, bytes=10.0, copied=1, itemsize=4)
    assert found.floor(1000.0, 20.0) == 10.0
    assert found.floor(1000.0, 200.0) == 20.0


def test_operations_are_counted_as_by_hand() -> None:
    x, heads = torch.zeros(2, 5, 8), torch.zeros(1, 3, 5, 8)
    with torch.no_grad(), CountedFlops() as counted:
        functional.linear(x, torch.zeros(16, 8), torch.zeros(16))
        assert (counted.total, counted.attention) == (2 * 10 * 8 * 16, 0)
        functional.scaled_dot_product_attention(heads, heads, heads)
        assert counted.attention == 2 * 3 * 5 * 5 * (8 + 8)
        torch.bmm(x, x.transpose(1, 2))
        assert counted.attention == 2 * 3 * 5 * 5 * 16 + 2 * 2 * 5 * 5 * 8
        before = counted.total
        functional.conv2d(torch.zeros(1, 3, 8, 8), torch.zeros(4, 3, 3, 3))
        assert counted.total - before == 2 * 6 * 6 * 4 * 27
        functional.gelu(x)
    assert counted.total - counted.attention == 2 * 10 * 8 * 16 + 2 * 6 * 6 * 4 * 27


def test_a_device_is_measured_once_by_the_clock_of_the_process(monkeypatch) -> None:
    """A clock that is twice as slow gives half the ceilings; a second call asks no clock."""
    ceilings.measured.cache_clear()
    times = iter(float(i) for i in range(10**6))  # every look is one second after the last
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(ceilings.time, "process_time", lambda: next(times))
    found = ceilings.measured(CPU, torch.float32, 3 << 20, 1)
    assert found == Ceilings(2.0 * 512**3, 2.0 * (3 << 20), 3 << 20, 4)
    assert ceilings.measured(CPU, torch.float32, 3 << 20, 1) is found
    ceilings.measured.cache_clear()


def limits(**changes) -> Limits:
    run = {
        "ceilings": {"flops": 100.0, "bytes": 1e9, "copied": 8, "itemsize": 4},
        "device": {"name": "a CPU"},
        "dtype": "float32",
    }
    return Limits(run | changes, {"flops": 1000.0, "attention_flops": 400.0, "work": 50.0})


def line(seconds: float, share: float, least: float | None, **more) -> dict:
    timing = {"seconds": seconds, "process": seconds / 2}
    return {"timing": timing, "computed_share": share, "least_share": least, **more}


def test_ceilings_are_named_by_the_machine_that_has_them() -> None:
    known = {"flops": 100.0, "bytes": 1e9, "copied": 8, "itemsize": 4}
    machines = [{"device": {"name": "x"}}, {"device": {"name": "a GPU"}, "ceilings": known}]
    assert limits(machines=machines).described()["text"].startswith("a GPU reached 100 FLOP/s")


def test_a_full_device_has_no_ceilings_and_the_run_continues(monkeypatch) -> None:
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    pipe = SimpleNamespace(device=CPU)
    monkeypatch.setattr(ceilings, "measured", full)
    monkeypatch.setattr(ceilings, "denoisers_of", lambda _: {"t": torch.nn.Linear(2, 2)})
    monkeypatch.setattr(ceilings, "execution_device", lambda _: CPU)
    assert ceilings.ceilings_of(pipe) is None


def test_shares_of_the_floor() -> None:
    found = limits()
    assert found.row({"a": line(80.0, 1.0, 1.0)}) == {"floor_seconds": 10.0, "floor_share": 0.25}
    # half of every layer: half the floor; by the clock of the process
    assert found.row({"a": line(20.0, 0.5, 0.5)})["floor_share"] == pytest.approx(0.5)
    # sparse attention may leave all of attention out
    assert found.row({"a": line(80.0, 1.0, None)})["floor_seconds"] == pytest.approx(6.0)
    text = found.described()["text"]
    assert "a CPU reached 100 FLOP/s in matrix products of float32" in text
    assert "reads 200 B of weights: at least 10 s" in text


def test_ceilings_that_a_row_beats_are_not_shown() -> None:
    found = limits()
    assert found.row({"a": line(10.0, 1.0, 1.0)})["floor_share"] == 2.0
    assert (
        found.beaten and "not shown: a row was faster than they allow" in found.described()["text"]
    )


def test_each_machine_has_its_own_floor_and_old_runs_have_none() -> None:
    fast = {"ceilings": {"flops": 200.0, "bytes": 1e9, "copied": 8, "itemsize": 4}}
    slow = {"ceilings": {"flops": 50.0, "bytes": 1e9, "copied": 8, "itemsize": 4}}
    found = limits(machines=[fast, slow])
    rows = {"a": line(80.0, 1.0, 1.0), "b": line(80.0, 1.0, 1.0, machine=1)}
    assert found.row(rows)["floor_seconds"] == pytest.approx((5.0 + 20.0) / 2)
    nothing = {"floor_seconds": None, "floor_share": None}
    assert limits(ceilings=None).row(rows) == nothing and limits(ceilings=None).described() == {}
    assert Limits({"ceilings": fast["ceilings"]}, {}).row(rows) == nothing
