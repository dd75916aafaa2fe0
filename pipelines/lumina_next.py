"""Lumina-Next (text to image): cross-attention, guidance batched."""

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets, patch_tokens

ADAPTER = FamilyAdapter(
    name="lumina_next",
    transformers=("LuminaNextDiT2DModel",),
    blocks=(BlockContract("layers", forecast_modules=("attn1", "attn2", "feed_forward")),),
    attention=(AttentionContract("layers"),),
    tokens=patch_tokens,
    guidance="batched",
    presets=adaptive_presets(),
)
