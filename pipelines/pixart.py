"""PixArt alpha and sigma (text to image): text by cross-attention, guidance batched."""

from .adapter import (
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    ScaleShift,
    adaptive_presets,
    patch_tokens,
)

ADAPTER = FamilyAdapter(
    name="pixart",
    transformers=("PixArtTransformer2DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            forecast_modules=("attn1", "attn2", "ff"),
            token_axes={},
            modulation=ScaleShift(timestep="timestep"),
        ),
    ),
    attention=(AttentionContract("transformer_blocks"),),
    tokens=patch_tokens,
    guidance="batched",
    presets=adaptive_presets(),
)
