"""JoyImage Edit (text to image, editing): joint attention with text behind, a reference image too.

The blocks have the image that is made in front, then the one that is edited.
"""

from collections.abc import Mapping
from typing import Any

from .adapter import (
    BY_DIFFERENCE,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
)
from .grids import Grid, tokens_on


def _grid(config: Any, shape: tuple[int, ...], named: Mapping[str, Any]) -> Grid:
    """Of latents `(B, C, F, H, W)`, or `(B, N, C, F, H, W)` for N images side by side in time."""
    images = shape[1] if len(shape) == 6 else 1
    frames, rows, columns = (n // p for n, p in zip(shape[-3:], config.patch_size, strict=True))
    return images * frames, rows, columns


ADAPTER = FamilyAdapter(
    name="joyimage",
    transformers=("JoyImageEditTransformer3DModel",),
    blocks=(
        BlockContract(
            "double_blocks",
            encoder="encoder_hidden_states",
            returns=("hidden", "encoder"),
            forecast_modules=("attn", "img_mlp", "txt_mlp"),
            modulation="img_norm1",
        ),
    ),
    attention=(AttentionContract("double_blocks", "attn"),),
    tokens=tokens_on(_grid),
    grid_rule=_grid,
    text="back",
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
