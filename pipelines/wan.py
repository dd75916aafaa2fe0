"""Wan 2.1 and 2.2 (text to video): one or two transformers, guidance in two calls."""

from .adapter import AttentionContract, BlockContract, FamilyAdapter, patch_tokens

ADAPTER = FamilyAdapter(
    name="wan",
    transformers=("WanTransformer3DModel",),
    blocks=(BlockContract("blocks", forecast_modules=("attn1", "attn2", "ffn")),),
    attention=(AttentionContract("blocks"),),
    tokens=patch_tokens,
    presets={
        "published": {
            "method": "confidence_gated_taylor",
            "threshold": 0.36,
            "order": 1,
            "block_order": 3,
            "warmup": 6,
            "guidance": "follow",
        },
        "safe": {
            "method": "adaptive_taylor",
            "tolerance": 0.003,
            "warmup": 6,
            "guidance": "difference",
        },
        "balanced": {
            "method": "adaptive_taylor",
            "tolerance": 0.01,
            "warmup": 6,
            "guidance": "difference",
        },
        "fast": {
            "method": "adaptive_taylor",
            "tolerance": 0.03,
            "warmup": 6,
            "guidance": "difference",
        },
    },
)
