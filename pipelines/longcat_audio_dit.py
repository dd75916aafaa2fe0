"""LongCat-AudioDiT (text to speech): text by cross-attention, guidance in two calls."""

from .adapter import (
    BY_DIFFERENCE,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    packed_tokens,
)

ADAPTER = FamilyAdapter(
    name="longcat_audio_dit",
    transformers=("LongCatAudioDiTTransformer",),
    blocks=(
        BlockContract(
            "blocks", forecast_modules=("self_attn", "cross_attn", "ffn"), cross=("cross_attn",)
        ),
    ),
    attention=(AttentionContract("blocks", "self_attn"),),
    tokens=packed_tokens,
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
