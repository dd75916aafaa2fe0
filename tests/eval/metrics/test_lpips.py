"""LPIPS from local weights, for each backbone; SqueezeNet against a plain second writing of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ditaccel.eval.metrics import lpips
from ditaccel.eval.metrics.weights import load_weights
from safetensors.torch import save_file

from ditaccel.errors import UsageError

A = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3)).astype(np.uint8)
B = np.random.default_rng(1).integers(0, 256, (2, 48, 48, 3)).astype(np.uint8)
# Parameters of torchvision's networks without their classifiers.
SIZES = {lpips.ALEX: 2_469_696, lpips.VGG: 14_714_688, lpips.SQUEEZE: 722_496}


def weights_file(folder: Path, backbone: lpips.Backbone) -> Path:
    torch.manual_seed(0)
    file = folder / "weights.safetensors"
    table = {f"features.{k}": v for k, v in backbone.make().state_dict().items()}
    save_file(table | {"classifier.1.weight": torch.ones(1)}, file)
    return file


@pytest.mark.parametrize("backbone", SIZES, ids=lambda b: b.name)
def test_a_distance_by_each_backbone(tmp_path, backbone) -> None:
    file = weights_file(tmp_path, backbone)
    metric = lpips.Lpips(file, backbone)
    assert sum(p.numel() for p in metric.parameters()) == SIZES[backbone]
    # each head weighs the channels of its tap, and none is negative
    widths = [tap.shape[1] for tap in metric._taps(torch.zeros(1, 3, 32, 32))]
    assert [head.shape[1] for head in metric.heads] == widths
    assert all((head >= 0).all() for head in metric.heads)
    near = np.clip(A.astype(int) + 5, 0, 255).astype(np.uint8)
    assert metric.distance(A, A) == 0.0
    assert 0 < metric.distance(A, near) < metric.distance(A, 255 - A)
    with pytest.raises(UsageError, match="32 pixels"):
        metric.distance(A[:, :16, :16], A[:, :16, :16])


def test_weights_of_another_network_are_refused(tmp_path) -> None:
    file = weights_file(tmp_path, lpips.ALEX)
    for other in (lpips.VGG, lpips.SQUEEZE):
        with pytest.raises(UsageError, match=other.file):
            lpips.Lpips(file, other)
    save_file({"other": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="AlexNet"):
        lpips.Lpips(tmp_path / "other.safetensors")


def _squeeze_taps(x: torch.Tensor, w: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """SqueezeNet 1.1 written as plain calls, after its table of layers."""

    def conv(x: torch.Tensor, name: str, **kwargs: int) -> torch.Tensor:
        parameters = w[f"features.{name}.weight"], w[f"features.{name}.bias"]
        return F.conv2d(x, *parameters, **kwargs).clamp(min=0)

    x = conv(x, "0", stride=2)
    taps = [x]
    for number in (3, 4, 6, 7, 9, 10, 11, 12):
        if number in (3, 6, 9):
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        small = conv(x, f"{number}.squeeze")
        wide = conv(small, f"{number}.expand3x3", padding=1)
        x = torch.cat([conv(small, f"{number}.expand1x1"), wide], 1)
        if number not in (3, 6):
            taps.append(x)
    return taps


def test_squeezenet_equals_a_plain_second_writing(tmp_path) -> None:
    file = weights_file(tmp_path, lpips.SQUEEZE)
    metric, w = lpips.Lpips(file, lpips.SQUEEZE), load_weights(file)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def taps(frames: np.ndarray) -> list[torch.Tensor]:
        # ImageNet's own normalisation is within the rounding of LPIPS' constants
        x = torch.from_numpy(frames / 255.0).float()
        return _squeeze_taps(((x - mean) / deviation).permute(0, 3, 1, 2), w)

    total = 0.0
    for one, other, head in zip(taps(A), taps(B), metric.heads, strict=True):
        gap = F.normalize(one, dim=1) - F.normalize(other, dim=1)
        total += float((gap.square() * head).sum(1).mean())
    assert metric.distance(A, B) == pytest.approx(total, rel=0.02)
