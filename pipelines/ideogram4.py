"""Ideogram 4 (text to image): a transformer for each guidance branch, text in front of one.

Text is padded in front to the longest that is allowed, and shorter ones are masked as a sequence
of their own.
"""

from collections.abc import Mapping
from typing import Any

from .adapter import (
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    packed_tokens,
)

_IMAGE = 2  # `indicator` of tokens that are denoised


def _text_tokens(config: Any, named: Mapping[str, Any]) -> int:
    """Less the tokens of text and padding, which come with the latents as zeros."""
    return -int((named["indicator"][0] != _IMAGE).sum())


ADAPTER = FamilyAdapter(
    name="ideogram4",
    transformers=("Ideogram4Transformer2DModel",),
    blocks=(
        BlockContract(
            "layers", forecast_modules=("attention", "feed_forward"), modulation="attention_norm1"
        ),
    ),
    attention=(AttentionContract("layers", "attention"),),
    tokens=packed_tokens,
    extra_tokens=_text_tokens,
    text="front",
    side_by_side=True,
    presets=adaptive_presets(),
)
