"""DiT (class-conditional images, `DiTPipeline`): guidance batched in one call, no cache context."""

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets, patch_tokens

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
        **adaptive_presets(),
    },
)
