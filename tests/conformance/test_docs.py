"""The generated tables of the documents are those that `make docs` writes."""

import importlib.metadata
import re

import generated_docs
import pytest
from documents import ROOT


def test_every_table_is_in_one_document():
    found = generated_docs.marked()
    assert set(found) == set(generated_docs.TABLES)
    assert all(len(paths) == 1 for paths in found.values()), found


@pytest.mark.parametrize("name", generated_docs.TABLES)
def test_tables_are_up_to_date(name):
    if name == "families":
        pinned = re.search(r"^diffusers==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
        here = importlib.metadata.version("diffusers")
        if pinned[1] != here:
            pytest.skip(f"the table names the pipelines of diffusers {pinned[1]}, here is {here}")
    (path,) = generated_docs.marked()[name]
    text = (ROOT / path).read_text(encoding="utf-8")
    assert f"-->\n{generated_docs.TABLES[name]()}\n<!-- end of {name} -->" in text, (
        f"the table {name!r} of {path} is stale; run: make docs"
    )


def test_a_stale_table_is_written_again_and_the_rest_is_kept():
    before = "# A\n<!-- generated: peers -->\nOUTDATED\n<!-- end of peers -->\nb\n"
    other = "<!-- generated: x -->\nkept\n<!-- end of x -->\n"
    after = generated_docs.filled(before + other)
    assert after.startswith("# A\n<!-- generated: peers -->\n| peer | options | note |\n")
    assert after.endswith(f"<!-- end of peers -->\nb\n{other}") and "OUTDATED" not in after
