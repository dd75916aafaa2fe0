"""LPIPS with an AlexNet backbone (Zhang et al. 2018), without torchvision.

The learned heads come with torchmetrics; the backbone's weights are the user's to bring, because
nothing is downloaded here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditaccel.errors import UsageError

from .base import Better, Metric, Need, Shown, Unit, register
from .frames import frame_pair
from .weights import load_weights

HOW = (
    "torchvision's AlexNet weights (alexnet-owt-7be5be79.pth from download.pytorch.org/models), as "
    ".pth or .safetensors"
)
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
# Indices of the ReLUs whose outputs are compared.
_TAPS = (1, 4, 7, 9, 11)


def _backbone() -> nn.Sequential:
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


class Lpips(nn.Module):
    """Learned perceptual distance of picture pairs.

    Args:
        weights: torchvision's AlexNet state dict as a file.

    Raises:
        UsageError: the file is missing, damaged, or not AlexNet's.
    """

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        self.features = _backbone()
        tensors = load_weights(weights)
        wanted = {k: tensors[k] for k in self.state_dict() if k in tensors}
        try:
            self.load_state_dict(wanted)
        except RuntimeError as error:
            raise UsageError(f"{weights} does not hold {HOW}") from error
        import torchmetrics

        heads = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/alex.pth"
        table = load_weights(heads)
        self.heads = [table[f"lin{i}.model.1.weight"] for i in range(len(_TAPS))]
        self.eval()

    def _taps(self, images: Tensor) -> list[Tensor]:
        x = images * 2 - 1
        x = (x - torch.tensor(_SHIFT).view(3, 1, 1)) / torch.tensor(_SCALE).view(3, 1, 1)
        taps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in _TAPS:
                taps.append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        return taps

    @torch.inference_mode()
    def distance(self, reference: Any, candidate: Any) -> float:
        """Mean LPIPS over frames: 0 for identical ones.

        Args:
            reference: frames (F, H, W, 3) of at least 64 × 64, uint8 or float in [0, 1].
            candidate: the same shape.

        Raises:
            UsageError: shapes differ, frames too small, or a value is not finite.
        """
        a, b = (x.float() for x in frame_pair(reference, candidate))
        if min(a.shape[-2:]) < 32:
            raise UsageError(f"LPIPS needs frames of at least 32 pixels, got {tuple(a.shape[-2:])}")
        total = torch.zeros(len(a))
        for one, other, head in zip(self._taps(a), self._taps(b), self.heads, strict=True):
            total += ((one - other).pow(2) * head).sum(1).mean(dim=(1, 2))
        return float(total.mean())


register(
    Metric(
        key="lpips",
        title="LPIPS",
        unit=Unit.NUMBER,
        better=Better.LOWER,
        about="learned perceptual distance to dense, 0 is equal",
        load=lambda file: Lpips(file).distance,
        needs=(Need.PICTURES, Need.WEIGHTS),
        how=HOW,
        shown=Shown.PAGE,
    )
)
