"""LPIPS (Zhang et al. 2018) with AlexNet, VGG-16 or SqueezeNet 1.1, without torchvision.

The learned heads come with torchmetrics; the backbone's weights are the user's to bring, because
nothing is downloaded here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditaccel.errors import UsageError

from .base import Better, Metric, Need, Run, Shown, Unit, register
from .frames import frame_pair
from .weights import load_weights

_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_LEAST = 32


def _alexnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )


def _vgg() -> nn.Sequential:
    layers: list[nn.Module] = []
    inside = 3
    for stage, (width, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        if stage:
            layers.append(nn.MaxPool2d(2, 2))
        for _ in range(count):
            layers += [nn.Conv2d(inside, width, 3, padding=1), nn.ReLU()]
            inside = width
    return nn.Sequential(*layers)


class _Fire(nn.Module):
    """Squeeze to few channels, then widen by 1 × 1 and 3 × 3 convolutions side by side."""

    def __init__(self, inside: int, squeezed: int, wide: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inside, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, wide, 1)
        self.expand3x3 = nn.Conv2d(squeezed, wide, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], 1).relu()


def _squeezenet() -> nn.Sequential:
    def pool() -> nn.MaxPool2d:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2),
        nn.ReLU(),
        pool(),
        _Fire(64, 16, 64),
        _Fire(128, 16, 64),
        pool(),
        _Fire(128, 32, 128),
        _Fire(256, 32, 128),
        pool(),
        _Fire(256, 48, 192),
        _Fire(384, 48, 192),
        _Fire(384, 64, 256),
        _Fire(512, 64, 256),
    )


@dataclass(frozen=True)
class Backbone:
    """A network whose layers LPIPS compares.

    Attributes:
        name: in texts.
        make: its convolutional part, with the names of torchvision's weights.
        taps: indices of the layers whose outputs are compared.
        heads: file of the learned heads in torchmetrics.
        file: torchvision's file of weights.
    """

    name: str
    make: Callable[[], nn.Sequential]
    taps: tuple[int, ...]
    heads: str
    file: str

    @property
    def how(self) -> str:
        """What to bring."""
        return (
            f"torchvision's {self.name} weights ({self.file} from download.pytorch.org/models), as "
            ".pth or .safetensors"
        )


ALEX = Backbone("AlexNet", _alexnet, (1, 4, 7, 9, 11), "alex", "alexnet-owt-7be5be79.pth")
VGG = Backbone("VGG-16", _vgg, (3, 8, 15, 22, 29), "vgg", "vgg16-397923af.pth")
SQUEEZE = Backbone(
    "SqueezeNet 1.1",
    _squeezenet,
    (1, 4, 7, 9, 10, 11, 12),
    "squeeze",
    "squeezenet1_1-b8a52dc0.pth",
)


class Lpips(nn.Module):
    """Learned perceptual distance of picture pairs.

    Args:
        weights: torchvision's state dict of the backbone as a file.
        backbone: which network it is of.

    Raises:
        UsageError: the file is missing, damaged, or of another network.
    """

    def __init__(self, weights: str | Path, backbone: Backbone = ALEX) -> None:
        super().__init__()
        self.features = backbone.make()
        self._taps_at = backbone.taps
        tensors = load_weights(weights)
        wanted = {k: tensors[k] for k in self.state_dict() if k in tensors}
        try:
            self.load_state_dict(wanted)
        except RuntimeError as error:
            raise UsageError(f"{weights} does not hold {backbone.how}") from error
        import torchmetrics

        folder = Path(torchmetrics.__file__).parent / "functional/image/lpips_models"
        table = load_weights(folder / f"{backbone.heads}.pth")
        self.heads = [table[f"lin{i}.model.1.weight"] for i in range(len(backbone.taps))]
        self.eval()

    def _taps(self, images: Tensor) -> list[Tensor]:
        x = images * 2 - 1
        x = (x - torch.tensor(_SHIFT).view(3, 1, 1)) / torch.tensor(_SCALE).view(3, 1, 1)
        taps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self._taps_at:
                taps.append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        return taps

    @torch.inference_mode()
    def distance(self, reference: Any, candidate: Any) -> float:
        """Mean LPIPS over frames: 0 for identical ones.

        Args:
            reference: frames (F, H, W, 3) of at least 32 × 32, uint8 or float in [0, 1].
            candidate: the same shape.

        Raises:
            UsageError: shapes differ, frames too small, or a value is not finite.
        """
        a, b = (x.float() for x in frame_pair(reference, candidate))
        if min(a.shape[-2:]) < _LEAST:
            raise UsageError(
                f"LPIPS needs frames of at least {_LEAST} pixels, got {tuple(a.shape[-2:])}"
            )
        total = torch.zeros(len(a))
        for one, other, head in zip(self._taps(a), self._taps(b), self.heads, strict=True):
            total += ((one - other).pow(2) * head).sum(1).mean(dim=(1, 2))
        return float(total.mean())


def _register(key: str, title: str, backbone: Backbone) -> None:
    def load(file: str) -> Run:
        return Lpips(file, backbone).distance

    metric = Metric(
        key=key,
        title=title,
        unit=Unit.NUMBER,
        better=Better.LOWER,
        about=f"learned perceptual distance to dense by {backbone.name}, 0 is equal",
        load=load,
        needs=(Need.PICTURES, Need.WEIGHTS),
        package="torchmetrics",
        how=backbone.how,
        shown=Shown.PAGE,
    )
    register(metric)


_register("lpips", "LPIPS", ALEX)
_register("lpips_vgg", "LPIPS VGG", VGG)
_register("lpips_squeeze", "LPIPS Squeeze", SQUEEZE)
