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
from .grids import Grid, from_ids

_IMAGE = 2  # `indicator` of tokens that are denoised


def _text_tokens(config: Any, named: Mapping[str, Any]) -> int:
    """Less the tokens of text and padding, which come with the latents as zeros."""
    return -int((named["indicator"][0] != _IMAGE).sum())


def _grid(config: Any, shape: tuple[int, ...], named: Mapping[str, Any]) -> Grid | None:
    """From `position_ids` `(B, L, 3)` of the tokens that are denoised."""
    ids = named["position_ids"][0][named["indicator"][0] == _IMAGE]
    return from_ids(config, shape, {"img_ids": ids})


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
    grid_rule=_grid,
    text="front",
    side_by_side=True,
    presets=adaptive_presets(),
)
