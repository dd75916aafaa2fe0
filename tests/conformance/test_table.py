"""The support table holds what the checks gave, and of all families."""

import pytest
import support_table
from compositions import COMPOSITIONS
from conformance import WORKS
from tiny import FAMILIES

MEND = "run: make support-table"


@pytest.mark.slow
def test_every_row_is_complete():
    for name, row in support_table.read().items():
        assert list(row["cells"]) == support_table.columns(), f"{MEND} ARGS={name}"
        assert all(row["cells"].values())


@pytest.mark.slow
def test_all_families_have_results():
    assert list(support_table.read()) == list(FAMILIES), MEND


def test_every_cell_that_is_not_works_has_its_reason():
    cells = dict.fromkeys(support_table.columns(), WORKS)
    cells["svg2"] = cells["reuse"] = "it is Sunday"
    cells["LoRA"] = "it rains"
    row = {"pipeline": "APipeline", "family": "a", "cells": cells}
    table = support_table.render({"a": row, "b": row})
    assert table.count("| [1] |") + table.count("[1] | ") >= 2 and "[3]" not in table
    assert "[1] it is Sunday" in table and "[2] it rains" in table


def test_footnotes_are_in_plain_words():
    """No reader of the README should have to know what aten.t is."""
    table = support_table.render(support_table.read())
    notes = [line for line in table.splitlines() if line.startswith("[")]
    for words in ("aten.", "OpOverload", "object has no attribute", "meta", "tensor number", "!"):
        assert not [note for note in notes if words in note], words
    assert sum("with or without ditaccel" in note for note in notes) == 3
    row = {"pipeline": "P", "family": "f", "cells": dict.fromkeys(support_table.columns(), WORKS)}
    row["cells"]["LoRA"] = f"{support_table.FAILS}RuntimeError"
    assert "[1] LoRA fails on this pipeline, with or without" in support_table.render({"f": row})


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_results_are_what_the_checks_give(name):
    measured, known = support_table.measure(name), support_table.read()[name]
    # (the table is measured with torchao, an extra that tests do without)
    missing = [k for k, v in measured["cells"].items() if v == "torchao is not installed"]
    measured["cells"].update({column: known["cells"][column] for column in missing})
    known.pop("commit", None)
    # what was not measured yet is what test_every_row_is_complete is for
    measured["cells"] = {k: v for k, v in measured["cells"].items() if k in known["cells"]}
    assert measured == known


@pytest.mark.parametrize("what", COMPOSITIONS)
def test_compositions(what):
    """Of one family; `test_results_are_what_the_checks_give` has all of them."""
    if what == "int8 weights":
        pytest.importorskip("torchao", reason="torchao is an extra of its own")
    assert COMPOSITIONS[what](FAMILIES["flux"]) == WORKS


def test_columns_are_named_in_full():
    table = support_table.render(support_table.read())
    shown = table.replace("<br>", " ").replace("_ ", "_")
    for column in support_table.columns():
        assert f"| {column} |" in shown, column


def test_a_run_over_all_resumes_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    measured = []

    def measure(name, known):
        measured.append(name)
        if name == "wan" and measured.count("wan") == 1:
            raise ValueError("no luck")
        return {"pipeline": "P", "family": name, "cells": dict.fromkeys(support_table.columns())}

    monkeypatch.setattr(support_table, "measure", measure)
    monkeypatch.setattr(support_table, "commit", lambda: "abc")
    words = ["support_table", "--all", "--results", str(tmp_path / "results.json")]
    monkeypatch.setattr("sys.argv", words)
    assert support_table.main() == 1 and measured == list(FAMILIES)
    assert "wan: : ValueError: no luck" in capsys.readouterr().out
    assert support_table.main() == 0 and measured == [*FAMILIES, "wan"]
    monkeypatch.setattr(support_table, "commit", lambda: "abd")
    assert support_table.main() == 0 and len(measured) == 2 * len(FAMILIES) + 1
