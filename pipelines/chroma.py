"""Chroma (text to image): Flux without guidance distillation, two calls a step and no context.

Masks of the pipeline's own text encoder are numbers that SDPA adds to the scores (diffusers 0.42):
attention methods then stay dense and say so. They apply where masks are given as booleans.
"""

from .adapter import (
    BY_DIFFERENCE,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    ScaleShift,
    adaptive_presets,
    packed_tokens,
)
from .grids import from_ids

ADAPTER = FamilyAdapter(
    name="chroma",
    transformers=("ChromaTransformer2DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            encoder="encoder_hidden_states",
            returns=("encoder", "hidden"),
            forecast_modules=("attn", "ff", "ff_context"),
            modulation=ScaleShift("norm1.norm", table=""),
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
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
