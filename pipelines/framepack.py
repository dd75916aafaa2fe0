"""FramePack (image to video, section by section): HunyuanVideo's blocks, and past frames."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

from .hunyuan_video import ADAPTER as _HUNYUAN_VIDEO

# Patches that frames of the past are cut into, the coarser the older; sizes are rounded up.
_PATCHES = {
    "latents_clean": (1, 2, 2),
    "latents_history_2x": (2, 4, 4),
    "latents_history_4x": (4, 8, 8),
}


def _past_tokens(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Tokens of the past."""
    return sum(
        prod(-(-size // step) for size, step in zip(shapes[name][2:], patch, strict=True))
        for name, patch in _PATCHES.items()
        if name in shapes
    )


ADAPTER = replace(
    _HUNYUAN_VIDEO,
    name="framepack",
    transformers=("HunyuanVideoFramepackTransformer3DModel",),
    extra_tokens=_past_tokens,
)
