"""Kandinsky 5 (text or image to video, text to image): text by cross-attention, channels last."""

from .adapter import (
    BY_DIFFERENCE,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
)
from .grids import channels_last, tokens_on

ADAPTER = FamilyAdapter(
    name="kandinsky5",
    transformers=("Kandinsky5Transformer3DModel",),
    blocks=(
        BlockContract(
            "visual_transformer_blocks",
            hidden="visual_embed",
            forecast_modules=("self_attention", "cross_attention", "feed_forward"),
        ),
    ),
    # With NABLA (a sparse attention of its own) the model masks by blocks: then this stays dense.
    attention=(AttentionContract("visual_transformer_blocks", "self_attention"),),
    tokens=tokens_on(channels_last),
    grid_rule=channels_last,
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
