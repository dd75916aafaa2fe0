"""Qwen-Image 2.1 (text to image, editing): one sequence, causal up to the image, two calls.

The first step computes text and condition images as well, and keeps their keys and values; the
others compute the image alone (unless `use_kv_cache=False`).
"""

from .adapter import (
    BY_DIFFERENCE,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    packed_tokens,
)

ADAPTER = FamilyAdapter(
    name="qwen_image21",
    transformers=("QwenImage21Transformer2DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks", forecast_modules=("attn", "img_mlp"), modulation="img_norm1"
        ),
    ),
    no_attention_because="its text tokens see only what is before them, their keys and values are "
    "kept between steps, and tile maps know neither",
    tokens=packed_tokens,
    text="front",
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
