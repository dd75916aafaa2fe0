"""LTX-Video (text or image to video): text by cross-attention, guidance batched."""

from .adapter import (
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    ScaleShift,
    adaptive_presets,
    packed_tokens,
)
from .grids import from_sizes

ADAPTER = FamilyAdapter(
    name="ltx",
    transformers=("LTXVideoTransformer3DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            forecast_modules=("attn1", "attn2", "ff"),
            token_axes={"image_rotary_emb": 1, "temb": 1},
            modulation=ScaleShift(),
        ),
    ),
    attention=(AttentionContract("transformer_blocks"),),
    tokens=packed_tokens,
    grid_rule=from_sizes,
    extra_in_front=True,  # given frames
    guidance="batched",
    presets=adaptive_presets(),
)
