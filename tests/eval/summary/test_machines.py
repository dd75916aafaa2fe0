"""Rows that were timed on two machines: where they differ, and what stays refused all the same."""

import pytest
from ditaccel.eval.measure.pairs import State
from ditaccel.eval.specs import Role, RunConfig
from ditaccel.eval.summary.machines import Machines
from ditaccel.eval.summary.summarise import _timed


def line(machine, seconds, share):
    """A sample whose dense run took 8 s beside a row that took so many."""
    dense, row = ({"seconds": each, "process": each} for each in (8.0, seconds))
    return {
        "machine": machine,
        "device": {"name": "CPU"},
        "timing": row,
        "pairs": [] if seconds == 8.0 else [{"dense": dense, "row": row}],
        "computed_share": share,
        "least_share": share,
    }


@pytest.mark.parametrize(
    ("share", "state"), [(0.2, State.NOISY), (0.9, State.IMPOSSIBLE), (1.0, State.UNSKIPPED)]
)
def test_what_is_refused_stays_refused_where_machines_differ(share, state):
    rows = {f"s{i}": line(i % 2, (2.0, 4.0)[i % 2], share) for i in range(4)}
    dense = {name: line(i % 2, 8.0, 1.0) for i, name in enumerate(rows)}
    machines = Machines({}, {"dense": dense, "row": rows}, "dense")
    assert machines.apart("row") == (
        "its machines differ: 4.00\u00d7 on CPU (run 1), 2.00\u00d7 on CPU (run 2)"
    )
    config = RunConfig("row", "row", "row", Role.METHOD, "row")
    found = _timed(config, rows, machines, share)
    assert found.state is state
    assert ("machines differ" in found.reason) == (state is State.NOISY)
