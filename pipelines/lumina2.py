"""Lumina 2 (text to image): one sequence of text and image, guidance in two calls on some steps.

The refiners before the layers always run.
"""

from .adapter import (
    BY_DIFFERENCE,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    patch_tokens,
)

ADAPTER = FamilyAdapter(
    name="lumina2",
    transformers=("Lumina2Transformer2DModel",),
    blocks=(BlockContract("layers", forecast_modules=("attn", "feed_forward")),),
    attention=(AttentionContract("layers", "attn"),),
    tokens=patch_tokens,
    text="front",
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
