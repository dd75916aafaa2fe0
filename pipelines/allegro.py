"""Allegro (text to video): text by cross-attention, guidance batched, no cache context."""

from .adapter import (
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    ScaleShift,
    adaptive_presets,
    patch_tokens,
)

ADAPTER = FamilyAdapter(
    name="allegro",
    transformers=("AllegroTransformer3DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            forecast_modules=("attn1", "attn2", "ff"),
            modulation=ScaleShift(),
        ),
    ),
    attention=(AttentionContract("transformer_blocks"),),
    tokens=patch_tokens,
    guidance="batched",
    presets=adaptive_presets(),
)
