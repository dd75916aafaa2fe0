"""Flux (text to image, MMDiT): double blocks, then single blocks; true guidance in two calls."""

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
    name="flux",
    transformers=("FluxTransformer2DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            encoder="encoder_hidden_states",
            returns=("encoder", "hidden"),
            forecast_modules=("attn", "ff", "ff_context"),
            token_axes={"image_rotary_emb": 0},
        ),
        # Published granularity of single blocks is the joint output: `proj_out` before its gate.
        BlockContract(
            "single_transformer_blocks",
            encoder="encoder_hidden_states",
            returns=("encoder", "hidden"),
            forecast_modules=("proj_out",),
            idle_modules=("attn", "proj_mlp"),
            token_axes={"image_rotary_emb": 0},
        ),
    ),
    attention=(
        AttentionContract("transformer_blocks", "attn"),
        AttentionContract("single_transformer_blocks", "attn"),
    ),
    tokens=packed_tokens,
    grid_rule=from_ids,
    without_given=first_ids,
    text="front",
    presets={
        **adaptive_presets(),
    },
    base=BY_DIFFERENCE,
)
