"""Mochi (text to video): joint attention, text behind the video and without its padding."""

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets, patch_tokens

ADAPTER = FamilyAdapter(
    name="mochi",
    transformers=("MochiTransformer3DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            encoder="encoder_hidden_states",
            returns=("hidden", "encoder"),
            forecast_modules=("attn1", "ff", "ff_context"),
        ),
    ),
    attention=(AttentionContract("transformer_blocks", breaks_graph=True),),
    tokens=patch_tokens,
    text="back",
    guidance="batched",
    presets=adaptive_presets(),
)
