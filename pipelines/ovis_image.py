"""Ovis-Image (text to image): the blocks of Flux, guidance in two calls."""

from dataclasses import replace

from . import flux
from .adapter import BY_DIFFERENCE, adaptive_presets

ADAPTER = replace(
    flux.ADAPTER,
    name="ovis_image",
    transformers=("OvisImageTransformer2DModel",),
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
