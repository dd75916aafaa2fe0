"""The moving picture of the README: what is in it, and that its command makes it."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from checkout import ROOT
from PIL import Image

SCRIPT = ROOT / "samples" / "side_by_side.py"
SHIPPED = ROOT / "samples" / "side-by-side.gif"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("side_by_side", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_clips_are_next_to_each_other_above_their_captions(script: ModuleType) -> None:
    red, blue = np.zeros((5, 8, 8, 3)), np.zeros((5, 8, 8, 3))
    red[..., 0], blue[..., 2] = 1.0, 1.0
    frames = script.picture([red, blue], ["dense: 2.0 s\n50 steps", "balanced: 1.0 s\n50 %"])
    assert len(frames) == 3, "every second frame"
    frame = np.asarray(frames[0].convert("RGB"))
    side = 8 * script.SCALE
    top = script.GAP + side // 2
    assert frame.shape == (side + script.FOOT + script.GAP, 2 * side + 3 * script.GAP, 3)
    assert tuple(frame[top, script.GAP + side // 2]) == (255, 0, 0)
    assert tuple(frame[top, 2 * script.GAP + side + side // 2]) == (0, 0, 255)
    assert (frame[side + script.GAP + 2 :, : script.GAP + side] < 128).any(), "no caption"


def test_psnr(script: ModuleType) -> None:
    dense = np.full((2, 4, 4, 3), 0.5)
    assert script.psnr(dense + 0.1, dense) == pytest.approx(20.0)


def test_it_is_shipped_small_and_linked() -> None:
    with Image.open(SHIPPED) as shipped:
        assert shipped.is_animated and shipped.n_frames > 20
    assert SHIPPED.stat().st_size < 500_000
    readme = (ROOT / "README.md").read_text()
    assert "](samples/side-by-side.gif)" in readme and "samples/side_by_side.py" in readme


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "made.gif"
    command = [sys.executable, "-P", str(SCRIPT), "--steps", "6", "--out", str(out)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "dense: " in told and "balanced: " in told and " dB" in told
    with Image.open(out) as made:
        assert made.is_animated
