"""`ditaccel report`: writes the page again, and the plot where asked."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from ditaccel.eval.report import command as report_command

from ditaccel.errors import UsageError


def _run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    report_command.add_arguments(parser)
    return report_command.run(parser.parse_args(arguments))


def test_page_and_plot(
    write_evaluation: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_evaluation(tmp_path / "run", video=False, samples=1)
    plot = tmp_path / "plot.png"
    assert _run(str(run), "--png", str(plot)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.split("  +", lines[0]) == [
        "configuration", "speed-up", "computed", "PSNR mean, dB", "median, dB", "kept", "worst, dB",
    ]  # fmt: skip
    assert lines[-1] == f"report: {run / 'report.html'}"
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_plot_in_a_missing_folder_is_one_clear_line(
    write_evaluation: Callable[..., Path], tmp_path: Path
) -> None:
    run = write_evaluation(tmp_path / "run", video=False, samples=1)
    with pytest.raises(UsageError, match="cannot write"):
        _run(str(run), "--png", str(tmp_path / "nowhere" / "plot.png"))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        _run(str(tmp_path / "nowhere"))
