"""Krea 2 (text to image): one sequence of text and image, guidance in two calls.

The fusion of the text encoder's layers before the blocks always runs.
"""

from collections.abc import Mapping
from typing import Any

from .adapter import (
    BY_DIFFERENCE,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    packed_tokens,
)
from .grids import Grid, from_ids


def _grid(config: Any, shape: tuple[int, ...], named: Mapping[str, Any]) -> Grid | None:
    """From `position_ids` `(L, 3)`, of which those of the image are the last."""
    return from_ids(config, shape, {"img_ids": named["position_ids"][-shape[1] :]})


ADAPTER = FamilyAdapter(
    name="krea2",
    transformers=("Krea2Transformer2DModel",),
    blocks=(BlockContract("transformer_blocks", forecast_modules=("attn", "ff")),),
    attention=(AttentionContract("transformer_blocks", "attn"),),
    tokens=packed_tokens,
    grid_rule=_grid,
    text="front",
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
