"""HunyuanVideo 1.5 (text or image to video): joint attention, text behind the video."""

from .adapter import (
    BY_DIFFERENCE,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    patch_tokens,
)

ADAPTER = FamilyAdapter(
    name="hunyuan_video15",
    transformers=("HunyuanVideo15Transformer3DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            encoder="encoder_hidden_states",
            returns=("hidden", "encoder"),
            forecast_modules=("attn", "ff", "ff_context"),
        ),
    ),
    attention=(AttentionContract("transformer_blocks", "attn"),),
    tokens=patch_tokens,
    text="back",
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
