"""Cosmos 1, 2 and 2.5 (text, image or video to world): guidance in two calls, no cache context."""

from .adapter import (
    BY_DIFFERENCE,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    patch_tokens,
)

ADAPTER = FamilyAdapter(
    name="cosmos",
    transformers=("CosmosTransformer3DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            forecast_modules=("attn1", "attn2", "ff"),
            added="extra_pos_emb",
        ),
    ),
    attention=(AttentionContract("transformer_blocks"),),
    tokens=patch_tokens,
    preconditioned=True,  # 1 and 2; 2.5 is flow matching
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
