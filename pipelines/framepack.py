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


def _past_tokens(config: Any, named: Mapping[str, Any]) -> int:
    """Tokens of the past, in front of those of the latents."""
    given = {name: named[name].shape[2:] for name in _PATCHES if named.get(name) is not None}
    return sum(
        prod(-(-size // step) for size, step in zip(shape, _PATCHES[name], strict=True))
        for name, shape in given.items()
    )


ADAPTER = replace(
    _HUNYUAN_VIDEO,
    name="framepack",
    transformers=("HunyuanVideoFramepackTransformer3DModel",),
    extra_tokens=_past_tokens,
    extra_in_front=True,
)
