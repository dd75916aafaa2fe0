"""The quickstart notebook runs on the shipped samples, and ships with small outputs."""

import os
from pathlib import Path

import nbformat
import pytest
from documents import ROOT
from nbclient import NotebookClient

NOTEBOOK = ROOT / "samples" / "quickstart.ipynb"
# Less to compute: nothing below is about the pictures.
FEW_BLOCKS = """\
for blocks in (pipe.transformer.transformer_blocks, pipe.transformer.single_transformer_blocks):
    del blocks[1:]
"""
ROWS = ("15 steps", "safe", "balanced", "fast", "tuned")


def _texts(notebook: nbformat.NotebookNode) -> str:
    """All that cells printed and returned as text."""
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    shown = [o.get("text", o.get("data", {}).get("text/html", "")) for o in outputs]
    return "".join(shown)


def _pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    return sum("image/png" in o.get("data", {}) for o in outputs)


def _check_outputs(notebook: nbformat.NotebookNode) -> None:
    texts = _texts(notebook)
    assert "ditaccel report: flux, adaptive_taylor" in texts and "<svg" in texts
    assert "identical to dense: True" in texts
    lines = {name: line for name in ROWS for line in texts.splitlines() if line.startswith(name)}
    assert list(lines) == list(ROWS)
    assert all("times as fast as dense" in line for line in lines.values())
    assert _pictures(notebook) == 2


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the top of a clone, in a kernel of its own, without a network."""
    os.symlink(ROOT / "samples", tmp_path / "samples")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    first = next(i for i, cell in enumerate(notebook.cells) if "from_pretrained" in cell.source)
    notebook.cells.insert(first + 1, nbformat.v4.new_code_cell(FEW_BLOCKS))
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=where).execute()
    _check_outputs(notebook)


def test_it_ships_with_small_outputs() -> None:
    text = NOTEBOOK.read_text()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    _check_outputs(notebook)
    assert len(text.encode()) < 300_000
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run all cells from the top, then save"
    assert str(ROOT) not in text and "site-packages" not in text
