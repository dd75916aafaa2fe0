"""A real evaluation beside two busy processes gives the speed-ups of a quiet one."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ditaccel.eval.measure.timing import run_queue_waits
from ditaccel.eval.options import Options
from ditaccel.eval.runs import evaluate

from ditaccel.io.files import read_json

MODEL = Path(__file__).resolve().parents[3] / "samples" / "models" / "shapes-dit"
BUSY = "x = 1.0\nwhile True:\n    x = x * 1.0000001 % 7.0"
OPTIONS = Options(steps=20, fewer=[10], features="none", threads=1, pairs=4, quiet=True)


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep so many processes computing."""
    children = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(not (MODEL / "model_index.json").is_file(), reason="shapes-dit is not here")
def test_speed_ups_beside_two_busy_processes(tmp_path: Path, record_property) -> None:
    if run_queue_waits() is None:
        pytest.skip("this system does not tell of its run queue")
    names = list(read_json(MODEL / "model_index.json")["id2label"].values())[:4]
    configs = ["taylorseer:interval=3"]
    quiet = evaluate(MODEL, configs, names, [0], tmp_path / "quiet", OPTIONS)
    with busy(2):
        beside = evaluate(MODEL, configs, names, [0], tmp_path / "busy", OPTIONS)
    rows = [read_json(folder / "summary.json") for folder in (quiet, beside)]
    for row in rows:
        print(row["timing"]["text"])
    for name in ("other-seed", "steps-10", "taylorseer-interval-3"):
        a, b = (row["configs"][name] for row in rows)
        print(name, a["speedup"], a["timing"], b["speedup"], b["timing"], sep="\n  ")
        assert b["speedup"]["median"] == pytest.approx(a["speedup"]["median"], rel=0.1)
        assert b["timing"]["busy"] > 0 and "process time" in b["timing"]["clock"]
    assert all(row["timing"]["trusted"] for row in rows)
    # What wall-clock alone would have said of one pair is no guide.
    assert abs(rows[1]["configs"]["other-seed"]["speedup"]["median"] - 1) < 0.05
