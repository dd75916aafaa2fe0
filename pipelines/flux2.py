"""Flux 2 and Klein (text to image, editing): double blocks, then single blocks on one sequence."""

from .adapter import (
    BY_DIFFERENCE,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    packed_tokens,
)
from .grids import first_ids, from_ids

ADAPTER = FamilyAdapter(
    name="flux2",
    transformers=("Flux2Transformer2DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            encoder="encoder_hidden_states",
            returns=("encoder", "hidden"),
            forecast_modules=("attn", "ff", "ff_context"),
        ),
        # attention and MLP are one module with fused projections
        BlockContract("single_transformer_blocks", joint_text="front", forecast_modules=("attn",)),
    ),
    attention=(
        AttentionContract("transformer_blocks", "attn"),
        AttentionContract("single_transformer_blocks", "attn"),
    ),
    tokens=packed_tokens,
    grid_rule=from_ids,
    without_given=first_ids,
    text="front",
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
