"""JoyImage Edit Plus (editing with several images of any size): patches of all images in a row.

Text is behind them; shorter rows of a batch are padded, which a mask takes out of the attention.
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
from .grids import Grid


def _grid(config: Any, shape: tuple[int, ...], named: Mapping[str, Any]) -> Grid | None:
    """Of the image that is made, which comes first; None where items of a batch differ in it."""
    made = {tuple(item[0]) for item in named.get("shape_list") or ()}
    if len(made) != 1:
        return None
    frames, rows, columns = (int(n) for n in made.pop())
    return frames, rows, columns


ADAPTER = FamilyAdapter(
    name="joyimage_plus",
    transformers=("JoyImageEditPlusTransformer3DModel",),
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
    tokens=packed_tokens,
    grid_rule=_grid,
    text="back",
    guidance="batched",
    presets=adaptive_presets(),
)
