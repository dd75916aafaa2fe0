"""Bria Fibo (text to image, editing): like Flux, new text features for each block, batched."""

from .adapter import (
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    packed_tokens,
)
from .grids import from_ids

ADAPTER = FamilyAdapter(
    name="bria_fibo",
    transformers=("BriaFiboTransformer2DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            encoder="encoder_hidden_states",
            returns=("encoder", "hidden"),
            forecast_modules=("attn", "ff", "ff_context"),
        ),
        BlockContract(
            "single_transformer_blocks",
            joint_text="front",
            forecast_modules=("proj_out",),
            idle_modules=("attn", "proj_mlp"),
        ),
    ),
    attention=(
        AttentionContract("transformer_blocks", "attn"),
        AttentionContract("single_transformer_blocks", "attn"),
    ),
    tokens=packed_tokens,
    grid_rule=from_ids,
    text="front",
    guidance="batched",
    presets=adaptive_presets(),
)
