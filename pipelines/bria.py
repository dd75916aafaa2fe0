"""Bria (text to image): the blocks of Flux, guidance batched."""

from dataclasses import replace

from . import flux
from .adapter import adaptive_presets

ADAPTER = replace(
    flux.ADAPTER,
    name="bria",
    transformers=("BriaTransformer2DModel",),
    guidance="batched",
    presets=adaptive_presets(),
)
