"""How far two pictures are apart in the features of a network that knows natural pictures.

This is not LPIPS: the network is EfficientNet-Lite0 in place of AlexNet, and no weights were
learnt from what people see, so values of the two cannot be compared. It needs no file of the
user's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from .base import Better, Metric, Shown, Unit, register
from .efficientnet import HOW, PACKAGE, EfficientNetLite0
from .frames import frame_pair

_BATCH = 16  # frames at a time


@lru_cache(1)
def _network() -> EfficientNetLite0:
    return EfficientNetLite0()


@torch.inference_mode()
def feature_distance(
    reference: Any, candidate: Any, network: EfficientNetLite0 | None = None
) -> float:
    """Squared distance of unit feature vectors, mean over places, stages and frames.

    Args:
        reference: frames (F, H, W, 3), uint8 or float in [0, 1].
        candidate: the same shape.
        network: None takes the one with the package's weights.

    Returns:
        0 for identical frames, at most 4: at every place of every stage the vectors of all channels
        are scaled to length 1 and subtracted.

    Raises:
        UsageError: shapes differ, a value is not finite, or the package is missing.
    """
    a, b = frame_pair(reference, candidate)
    network = network or _network()
    total = 0.0
    for one, other in zip(a.float().split(_BATCH), b.float().split(_BATCH), strict=True):
        stages = list(zip(network.stages(one), network.stages(other), strict=True))
        for x, y in stages:
            apart = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1)
            total += float(apart.mean(dim=(1, 2)).sum()) / len(stages)
    return total / len(a)


register(
    Metric(
        key="feature_distance",
        title="feature distance",
        unit=Unit.NUMBER,
        better=Better.LOWER,
        about="distance of EfficientNet-Lite0 features to dense (not LPIPS), 0 is equal",
        run=feature_distance,
        package=PACKAGE,
        how=HOW,
        shown=Shown.PAGE,
    )
)
