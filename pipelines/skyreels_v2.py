"""SkyReels-V2 (text, image or video to video, also by diffusion forcing): Wan's blocks."""

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
    name="skyreels_v2",
    transformers=("SkyReelsV2Transformer3DModel",),
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
