"""Wan 2.2 Animate (a character moves as in a video): Wan's blocks, with adapters for the face."""

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
    name="wan_animate",
    transformers=("WanAnimateTransformer3DModel",),
    blocks=(
        BlockContract(
            "blocks", forecast_modules=("attn1", "attn2", "ffn"), modulation=ScaleShift()
        ),
    ),
    attention=(AttentionContract("blocks"),),
    tokens=patch_tokens,
    embedding="condition_embedder.time_proj",
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
