"""Real frames of the shapes world for FID to real data."""

import json
import sys

import numpy as np
import pytest
from ditaccel.eval.metrics.real import load_real
from ditaccel.eval.shapes.real_shapes import _DATA, main, real_frames

from ditaccel.errors import UsageError

in_repository = pytest.mark.skipif(
    not _DATA.is_file(), reason="the shapes generator comes with the repository only"
)


@pytest.fixture
def model(tmp_path):
    sheet = {"task": "text-to-video", "call": {"num_frames": 3}}
    (tmp_path / "sample.json").write_text(json.dumps(sheet))
    return tmp_path


@in_repository
def test_frames_as_the_evaluation_reads_them(model, tmp_path, capsys) -> None:
    assert main(["--model", str(model), "--n", "5", "--out", str(tmp_path / "real.npz")]) == 0
    assert "5 real samples" in capsys.readouterr().out
    clips = load_real(tmp_path / "real.npz")
    assert len(clips) == 5 and clips[0].shape == (3, 64, 64, 3)
    again = real_frames(model, 5)
    assert np.array_equal(np.stack(clips), again)
    assert not np.array_equal(again, real_frames(model, 5, seed=1))


@in_repository
def test_classes_are_single_pictures(model) -> None:
    (model / "sample.json").write_text(json.dumps({"task": "class-to-image"}))
    assert real_frames(model, 3).shape == (3, 1, 64, 64, 3)


@in_repository
def test_scenes_are_drawn_by_their_own_generator(model) -> None:
    sheet = {"task": "text-to-image", "features": "../scenes-features"}
    (model / "sample.json").write_text(json.dumps(sheet))
    before = sys.path.copy()
    found = real_frames(model, 2)
    assert found.shape == (2, 1, 128, 128, 3) and found.std() > 20
    assert sys.path == before


def test_what_is_missing_is_said(model, tmp_path, capsys) -> None:
    with pytest.raises(UsageError, match="at least 2"):
        real_frames(model, 1)
    with pytest.raises(UsageError, match="run this in a clone"):
        real_frames(model, 2, data=tmp_path / "none.py")
    (model / "sample.json").unlink()
    assert main(["--model", str(model), "--out", str(tmp_path / "x.npz")]) == 2
    assert "no sample.json" in capsys.readouterr().err
