"""Motif-Video (text or image to video): joint attention, text behind the video."""

from .adapter import (
    BY_DIFFERENCE,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    patch_tokens,
)

_RETURNS = ("hidden", "encoder")

ADAPTER = FamilyAdapter(
    name="motif_video",
    transformers=("MotifVideoTransformer3DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            encoder="encoder_hidden_states",
            returns=_RETURNS,
            forecast_modules=("attn", "cross_attn", "ff", "ff_context"),
        ),
        BlockContract(
            "single_transformer_blocks",
            encoder="encoder_hidden_states",
            returns=_RETURNS,
            forecast_modules=("proj_out",),
            idle_modules=("attn", "cross_attn", "proj_mlp"),
        ),
    ),
    attention=(
        AttentionContract("transformer_blocks", "attn"),
        AttentionContract("single_transformer_blocks", "attn"),
    ),
    tokens=patch_tokens,
    text="back",
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
