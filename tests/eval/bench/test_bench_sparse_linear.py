"""The bench of sparse-linear attention: its maps, its rows, and what it refuses."""

import csv
from pathlib import Path

import pytest
import torch
from ditaccel.eval.bench.sparse_linear import FIELDS, maps
from ditaccel.eval.bench.table import MACHINE
from ditaccel.kernels import Tiling

from ditaccel.cli import main

SMALL = (
    "--lengths",
    "256",
    "--dtype",
    "fp32",
    "--heads",
    "1",
    "--head-dim",
    "16",
    "--repeats",
    "1",
)


def test_maps_have_the_shares_that_are_asked_for() -> None:
    tilings = Tiling.fixed(1280, 128), Tiling.fixed(1280, 64)
    critical, marginal = maps(3, tilings, (0.05, 0.1), torch.device("cpu"))
    kept = critical.to_mask()
    assert kept.sum(-1).unique().tolist() == [1]
    assert marginal.sum(-1).unique().tolist() == [17]
    assert not bool((kept & marginal).any())


def test_a_run_writes_a_row_and_holds_it_against_a_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.csv"
    command = ["bench", "sparse_linear", *SMALL, "--out", str(out)]
    assert main(command) == 0
    assert main([*command, "--at-least", "1e9", "0"]) == 1
    assert "fp32 256: forward" in capsys.readouterr().out
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and tuple(rows[0]) == (*FIELDS, *MACHINE)
    assert (rows[0]["critical"], rows[0]["negligible"]) == ("0.25", "0.0")
    assert float(rows[0]["backward_ms"]) > 0 and rows[0]["mb"] == ""
    assert float(rows[0]["training_free_ms"]) > float(rows[0]["moments_ms"]) > 0


def test_shares_beyond_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "sparse_linear", *SMALL, "--critical", "0.5", "--negligible", "0.6"]
    assert main(command) == 2
    assert "no more than 1 together" in capsys.readouterr().err
