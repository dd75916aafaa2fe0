"""Bria Fibo 2 (text to image, editing): gist of the text in front, guidance in two calls.

The refiner before the layers and the perceiver that makes the gist always run. Images to edit
follow the image that is made.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

from .adapter import (
    BY_DIFFERENCE,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    patch_tokens,
)
from .grids import Grid, of_patches


def _context_tokens(config: Any, named: Mapping[str, Any]) -> int | None:
    """Tokens of the images to edit; None where prompts of a batch may have gists of two lengths.

    Then the shorter one is padded, and all of them go behind the images.
    """
    mask = named.get("encoder_attention_mask")
    if mask is not None and bool((mask.sum(1) != mask[0].sum()).any()):
        return None
    images = named.get("context_latents") or ()
    return sum(prod(image.shape[2:]) // config.patch_size**2 for image in images)


def _grid(config: Any, shape: tuple[int, ...], named: Mapping[str, Any]) -> Grid | None:
    """Of the image that is made, where there is no other one."""
    return None if named.get("context_latents") else of_patches(config, shape, named)


ADAPTER = FamilyAdapter(
    name="bria_fibo2",
    transformers=("BriaFibo2Transformer2DModel",),
    blocks=(
        BlockContract(
            "layers",
            hidden="x",
            forecast_modules=("attention", "cross_attention", "feed_forward"),
        ),
    ),
    attention=(AttentionContract("layers", "attention"),),
    tokens=patch_tokens,
    extra_tokens=_context_tokens,
    grid_rule=_grid,
    text="front",
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
