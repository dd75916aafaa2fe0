"""What an evaluation is going to take is reported before it takes it."""

import pytest
from ditaccel.eval.comparison.plan import seconds_left, size_line, time_line
from ditaccel.eval.measure import memory

from ditaccel.cli import main


def test_lines() -> None:
    assert size_line(128, 1, 10, 1280, "clips") == "128 prompts x 10 rows: 1,280 clips"
    found = size_line(4, 2, 3, 20, "pictures")
    assert found == "4 prompts x 2 seeds x 3 rows: 24 pictures, 20 of them left"
    assert time_line(30) == "about 30 s to go"
    assert time_line(3 * 3600).startswith("about 3 h 0 min to go; a smaller `limit` takes fewer")


def test_every_row_counts_by_its_own_time_and_those_not_yet_known_by_that_of_dense() -> None:
    left, timed = {"dense": 2, "a": 2, "b": 1}, {"dense": 0, "a": 1, "b": 0}
    assert seconds_left({"dense": 10.0}, left, "dense", timed) == pytest.approx(60)
    assert seconds_left({"dense": 10.0, "a": 4.0}, left, "dense", timed) == pytest.approx(48)


def test_an_evaluation_says_its_size_and_time_before_it_measures(
    model_folder, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(memory, "live_tensor_bytes", lambda: 0)
    command = ["eval", str(model_folder), "--out", str(tmp_path / "o"), "--features", "none"]
    assert main([*command, "--fewer", "2", "--steps", "4", "--no-html", "--threads", "1"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("eval: ")]
    assert lines[0] == "eval: 2 prompts x 3 rows: 6 pictures"
    assert "dense: warmed up" in lines[1] and "were all rows as slow: about" in lines[2]
    assert any(line.startswith("eval: about ") and "to go" in line for line in lines[3:])
