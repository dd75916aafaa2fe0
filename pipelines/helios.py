"""Helios (video, chunk by chunk): Wan's blocks over a chunk and its history in front of it.

The history is clean, and cut the coarser the older it is. Its tokens stand where other families
have text, and stay dense as that does.
"""

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
    name="helios",
    transformers=("HeliosTransformer3DModel",),
    blocks=(
        BlockContract(
            "blocks", forecast_modules=("attn1", "attn2", "ffn"), modulation=ScaleShift()
        ),
    ),
    attention=(AttentionContract("blocks"),),
    tokens=patch_tokens,
    text="front",
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
