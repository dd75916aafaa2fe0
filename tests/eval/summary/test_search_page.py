"""The page of a search: every candidate, the winner, pictures; damage in one line."""

import json

import numpy as np
import pytest
from ditaccel.eval.summary.search_page import write_tuning_page

from ditaccel.cli import main
from ditaccel.errors import UsageError


def candidate(name, kind, seconds, level, reached=True):
    return {
        "name": name,
        "kind": kind,
        "config": name,
        "level": level,
        "worst": level - 2,
        "seconds": seconds,
        "speedup": 10 / seconds,
        "prompts": 2,
        "reached": reached,
    }


@pytest.fixture
def folder(tmp_path):
    rows = [
        candidate("fast", "joint", 2.0, 25.0, reached=False),
        candidate("<best>", "joint", 3.0, 31.0),
        candidate("slow", "cache", 5.0, 36.0),
        candidate("12 steps", "steps", 5.5, 22.0, reached=False),
    ]
    part = {
        "metric": "psnr", "unit": "dB", "higher": True, "statistic": "mean", "level": 30.0,
        "seconds": None, "dense": 10.0, "reached": True, "best": "<best>", "words": "best: 31 dB",
        "rows": rows,
    }  # fmt: skip
    data = {
        "tuning": 1, "model": "WanPipeline", "scheduler": "UniPC", "steps": 20, "prompt": "a cat",
        "prompts": 2, "targets": {"30 dB": part},
    }  # fmt: skip
    (tmp_path / "tuning.json").write_text(json.dumps(data))
    rng = np.random.default_rng(0)
    for name in ("dense", "fast"):
        frames = rng.integers(0, 255, (3, 16, 16, 3), np.uint8)
        np.savez(tmp_path / f"picture-{name}.npz", frames=frames)
    return tmp_path


def test_the_page_has_every_candidate_and_marks_the_winner(folder, capsys):
    assert main(["report", str(folder)]) == 0
    assert "best: 31 dB" in capsys.readouterr().out
    page = (folder / "report.html").read_text()
    for name in ("fast", "&lt;best&gt;", "slow", "12 steps"):
        assert name in page
    assert "<best>" not in page
    assert page.count('class="point"') == 8  # the plot is drawn wide and narrow
    assert page.count("data:image/png") == 2 and "taken" in page and "3.33×" in page


def test_damage_is_one_line(folder, capsys):
    assert main(["report", str(folder), "--json"]) == 2
    picture = folder / "picture-fast.npz"
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="cannot be read"):
        write_tuning_page(folder)
    np.savez(picture, others=np.zeros(1))
    with pytest.raises(UsageError, match="holds no picture"):
        write_tuning_page(folder)
    picture.write_bytes(whole)
    data = json.loads((folder / "tuning.json").read_text())
    data["targets"]["30 dB"]["best"] = "another"
    (folder / "tuning.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match="is damaged"):
        write_tuning_page(folder)
    (folder / "tuning.json").write_text('{"tuning": 1, "targets": {"30 dB": {}}}')
    with pytest.raises(UsageError, match="is damaged"):
        write_tuning_page(folder)
    (folder / "tuning.json").write_text("{}")
    with pytest.raises(UsageError, match="not what `ditaccel tune` writes"):
        write_tuning_page(folder)
