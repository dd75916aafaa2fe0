"""Wan 2.1 and 2.2 (text to video): one or two transformers, guidance in two calls."""

from .adapter import (
    BY_DIFFERENCE,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    ScaleShift,
    adaptive_presets,
    patch_tokens,
)

ADAPTER = FamilyAdapter(
    name="wan",
    transformers=("WanTransformer3DModel",),
    blocks=(
        BlockContract(
            "blocks", forecast_modules=("attn1", "attn2", "ffn"), modulation=ScaleShift()
        ),
    ),
    attention=(AttentionContract("blocks"),),
    tokens=patch_tokens,
    embedding="condition_embedder.time_proj",
    presets={
        **adaptive_presets(),
    },
    base=BY_DIFFERENCE,
)
