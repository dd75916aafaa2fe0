"""FVD: I3D's shape, and the distance by a network for clips."""

import numpy as np
import pytest
import torch
from ditaccel.eval.metrics import i3d
from ditaccel.eval.metrics.fid import fid
from ditaccel.eval.metrics.fvd import Fvd
from ditaccel.eval.metrics.weights import load_weights
from ditaccel.eval.shapes.features import FeatureNet
from safetensors.torch import save_file

from ditaccel.errors import UsageError


def clips(count: int, seed: int, frames: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (count, frames, 16, 16, 3)).astype(np.uint8))


@pytest.fixture(scope="module")
def net() -> i3d.I3d:
    torch.manual_seed(0)
    return i3d.I3d()


def test_i3d_has_the_published_sizes_and_names(net) -> None:
    # 12.29 M parameters below 400 classes of 1024 channels
    total = sum(p.numel() for p in net.parameters())
    assert total - (1024 * 400 + 400) == 12_287_264
    names = set(net.state_dict())
    assert {"Conv3d_1a_7x7.conv3d.weight", "Mixed_4f.b2b.bn.running_var"} <= names
    assert {"Mixed_5c.b3b.conv3d.weight", "logits.conv3d.bias"} <= names
    assert net.Mixed_5c.b1b.conv3d.weight.shape == (384, 192, 3, 3, 3)


def test_i3d_pads_as_its_first_writing_does() -> None:
    # 7 positions at stride 2 give 4, and the odd one of the 3 added ones is at the end
    x = torch.ones(1, 1, 7, 8, 224)
    assert i3d._same(x, (3, 3, 7), (2, 2, 2)).shape[2:] == (9, 9, 229)
    padded = i3d._same(torch.ones(1, 1, 1, 1, 8), (1, 1, 3), (1, 1, 2))
    assert padded.flatten().tolist() == [1.0] * 8 + [0.0]


@pytest.mark.slow
def test_i3d_runs_on_clips_of_its_fewest_frames(net, tmp_path) -> None:
    file = tmp_path / "i3d.safetensors"
    save_file(net.state_dict(), file)
    clip = torch.rand(1, i3d.FEWEST_FRAMES, 3, 20, 20)
    loaded = i3d.I3d(load_weights(file))
    with torch.inference_mode():
        scores = loaded(clip)
        assert scores.shape == (1, i3d.CLASSES) and torch.isfinite(scores).all()
        assert torch.equal(scores, net(clip))
    with pytest.raises(UsageError, match="at least 9 frames, got 4"):
        Fvd(file).distance(clips(10, 0), clips(10, 1))


def test_by_a_folder_it_is_the_distance_of_its_features(tmp_path) -> None:
    torch.manual_seed(0)
    FeatureNet().save_pretrained(tmp_path)
    a, b = clips(12, 0), clips(14, 1)
    found = Fvd(tmp_path).distance(a, b)
    loaded = FeatureNet.from_pretrained(tmp_path)
    features = [
        loaded.features(torch.from_numpy(np.stack(x) / 255.0).permute(0, 1, 4, 2, 3).float())
        for x in (a, b)
    ]
    assert found.value == pytest.approx(fid(*features), rel=1e-4)
    low, high = found.interval
    assert low < found.value < high
    assert Fvd(tmp_path).distance(a, a).value == pytest.approx(0, abs=1e-6)


def test_pictures_have_none_and_bad_weights_are_named(tmp_path) -> None:
    torch.manual_seed(0)
    FeatureNet().save_pretrained(tmp_path)
    assert Fvd(tmp_path).distance(clips(10, 0, 1), clips(10, 1, 1)) is None
    with pytest.raises(UsageError, match="no weights file"):
        Fvd(tmp_path / "none.pt")
    save_file({"other": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match=r"rgb_imagenet\.pt"):
        Fvd(tmp_path / "other.safetensors")
