"""The CSV files of benchmarks: rows that say where they come from, in files of one kind."""

import csv
from pathlib import Path

import pytest
import torch
from ditaccel.eval.bench import table

from ditaccel.errors import UsageError
from ditaccel.io import provenance


def test_rows_name_the_machine_and_are_added_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.csv"
    for value in (1, 2):
        table.write_csv(path, ("a",), [{"a": value}], "cpu", quiet=True)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["a"] for row in rows] == ["1", "2"]
    assert tuple(rows[0]) == ("a", *table.MACHINE)
    assert rows[0]["commit"] == provenance.commit()
    assert rows[0]["torch"] == torch.__version__
    assert rows[0]["threads"] == str(torch.get_num_threads())
    assert rows[0]["device"] and rows[0]["driver"] == ""
    assert table.read_csv(path, ("a",), "a table") == rows


def test_a_file_of_another_table_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a\n1\n")  # as it was before rows named their machine
    with pytest.raises(UsageError, match="its columns are others; name a new file") as told:
        table.write_csv(path, ("a",), [{"a": 2}], "cpu")
    assert told.value.argument == "out" and path.read_text() == "a\n1\n"
    assert table.read_csv(path, ("a",), "a table") == [{"a": "1"}]
    with pytest.raises(UsageError, match="is not a table; it has no column b"):
        table.read_csv(path, ("a", "b"), "a table")


def test_the_line_above_a_table_names_device_threads_and_torch() -> None:
    line = table.machine_line("cpu")
    assert torch.__version__ in line and "thread" in line and "driver" not in line
