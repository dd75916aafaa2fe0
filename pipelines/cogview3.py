"""CogView3-Plus (text to image): joint attention, text in front, guidance batched."""

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets, patch_tokens

ADAPTER = FamilyAdapter(
    name="cogview3",
    transformers=("CogView3PlusTransformer2DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            encoder="encoder_hidden_states",
            returns=("hidden", "encoder"),
            forecast_modules=("attn1", "ff"),
        ),
    ),
    attention=(AttentionContract("transformer_blocks"),),
    tokens=patch_tokens,
    text="front",
    guidance="batched",
    presets=adaptive_presets(),
)
