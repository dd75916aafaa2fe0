"""CogView4 (text to image): joint attention, text in front, guidance in two calls."""

from .adapter import (
    BY_DIFFERENCE,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    patch_tokens,
)

ADAPTER = FamilyAdapter(
    name="cogview4",
    transformers=("CogView4Transformer2DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            encoder="encoder_hidden_states",
            returns=("hidden", "encoder"),
            forecast_modules=("attn1", "ff", "ff"),  # one MLP for both streams
        ),
    ),
    attention=(AttentionContract("transformer_blocks"),),
    tokens=patch_tokens,
    text="front",
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
