"""HunyuanDiT (text to image): long skips between blocks, text by cross-attention, batched."""

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets, patch_tokens

ADAPTER = FamilyAdapter(
    name="hunyuan_dit",
    transformers=("HunyuanDiT2DModel",),
    blocks=(BlockContract("blocks", forecast_modules=("attn1", "attn2", "ff")),),
    attention=(AttentionContract("blocks"),),
    tokens=patch_tokens,
    guidance="batched",
    presets=adaptive_presets(),
)
