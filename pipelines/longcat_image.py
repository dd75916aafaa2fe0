"""LongCat-Image (text to image, editing): the blocks of Flux, guidance in two calls."""

from dataclasses import replace

from . import flux
from .adapter import BY_DIFFERENCE, adaptive_presets

ADAPTER = replace(
    flux.ADAPTER,
    name="longcat_image",
    transformers=("LongCatImageTransformer2DModel",),
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
