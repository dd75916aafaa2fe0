"""Flux 3 (text to image, editing): joint blocks, text in front, guidance in two calls.

The blocks of each kind of tokens (text, image, reference image) before the joint ones always run.
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


def _reference_tokens(config: Any, named: Mapping[str, Any]) -> int:
    """Tokens of reference images, behind those of the image."""
    given = named.get("image_cond_hidden_states")
    return 0 if given is None else given.shape[1]


def _grid(config: Any, shape: tuple[int, ...], named: Mapping[str, Any]) -> Grid | None:
    """From `img_ids` `(L, 4)`, whose rows and columns are counted in halves."""
    return from_ids(config, shape, {"img_ids": 2 * named["img_ids"]})


ADAPTER = FamilyAdapter(
    name="flux3",
    transformers=("Flux3Transformer2DModel",),
    blocks=(
        BlockContract(
            "single_transformer_blocks",
            encoder="encoder_hidden_states",
            returns=("encoder", "hidden"),
            forecast_modules=("attn", "ff"),
            modulation="norm",
        ),
    ),
    attention=(AttentionContract("single_transformer_blocks", "attn"),),
    tokens=packed_tokens,
    extra_tokens=_reference_tokens,
    grid_rule=_grid,
    text="front",
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
