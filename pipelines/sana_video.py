"""SANA-Video (text or image to video): linear self-attention, guidance batched."""

from .adapter import BlockContract, FamilyAdapter, ScaleShift, adaptive_presets, patch_tokens

ADAPTER = FamilyAdapter(
    name="sana_video",
    transformers=("SanaVideoTransformer3DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            forecast_modules=("attn1", "attn2", "ff"),
            modulation=ScaleShift(timestep="timestep"),
        ),
    ),
    no_attention_because="its self-attention is linear: "
    "there is no attention matrix to skip tiles of",
    tokens=patch_tokens,
    guidance="batched",
    presets=adaptive_presets(),
)
