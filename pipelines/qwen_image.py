"""Qwen-Image (text to image, editing): joint attention, text in front."""

from .adapter import (
    BY_DIFFERENCE,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    packed_tokens,
)
from .grids import first_shapes, from_image_shapes

ADAPTER = FamilyAdapter(
    name="qwen_image",
    transformers=("QwenImageTransformer2DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            encoder="encoder_hidden_states",
            returns=("encoder", "hidden"),
            forecast_modules=("attn", "img_mlp", "txt_mlp"),
            token_axes={"image_rotary_emb": 0, "modulate_index": 1},
        ),
    ),
    attention=(AttentionContract("transformer_blocks", "attn"),),
    tokens=packed_tokens,
    grid_rule=from_image_shapes,
    without_given=first_shapes,
    text="front",
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
