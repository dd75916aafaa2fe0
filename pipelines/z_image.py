"""Z-Image (text to image): latents as a list, one sequence of image and text, guidance batched.

Image and text are each padded to a multiple of 32 tokens. Refiners before the layers always run.
"""

import math
from collections.abc import Mapping
from typing import Any

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets
from .grids import Grid

_MULTIPLE = 32


def _grid(config: Any, shape: tuple[int, ...], named: Mapping[str, Any]) -> Grid:
    """Of latents `(B, C, F, H, W)`; padding is behind it."""
    patch, frames = config.all_patch_size[0], config.all_f_patch_size[0]
    return shape[2] // frames, shape[3] // patch, shape[4] // patch


def _tokens(config: Any, shape: tuple[int, ...]) -> int:
    """Image tokens and their padding."""
    return -(-math.prod(_grid(config, shape, {})) // _MULTIPLE) * _MULTIPLE


ADAPTER = FamilyAdapter(
    name="z_image",
    transformers=("ZImageTransformer2DModel",),
    blocks=(BlockContract("layers", hidden="x", forecast_modules=("attention", "feed_forward")),),
    attention=(AttentionContract("layers", "attention"),),
    tokens=_tokens,
    grid_rule=_grid,
    text="back",
    timestep="t",
    sample="x",
    guidance="batched",
    presets=adaptive_presets(),
)
