"""DiT (class-conditional images, `DiTPipeline`): guidance batched in one call, no cache context."""

from .adapter import AttentionContract, BlockContract, FamilyAdapter, patch_tokens

ADAPTER = FamilyAdapter(
    name="dit",
    transformers=("DiTTransformer2DModel",),
    blocks=(BlockContract("transformer_blocks", forecast_modules=("attn1", "ff")),),
    attention=(AttentionContract("transformer_blocks"),),
    tokens=patch_tokens,
    guidance="batched",
    presets={
        "published": {
            "method": "confidence_gated_taylor",
            "threshold": 0.008,
            "order": 1,
            "block_order": 3,
            "warmup": 3,
        },
        "safe": {"method": "adaptive_taylor", "tolerance": 0.003},
        "balanced": {"method": "adaptive_taylor", "tolerance": 0.01},
        "fast": {"method": "adaptive_taylor", "tolerance": 0.03},
    },
)
