"""DiT (class-conditional images, `DiTPipeline`): guidance batched in one call, no cache context."""

from .adapter import BlockContract, FamilyAdapter

ADAPTER = FamilyAdapter(
    name="dit",
    transformers=("DiTTransformer2DModel",),
    blocks=(BlockContract("transformer_blocks", forecast_modules=("attn1", "ff")),),
    guidance="batched",
    presets={
        "published": {
            "method": "confidence_gated_taylor",
            "threshold": 0.008,
            "order": 1,
            "block_order": 3,
            "warmup": 3,
        },
        "safe": {"method": "confidence_gated_taylor", "threshold": 0.004},
        "balanced": {"method": "confidence_gated_taylor", "threshold": 0.008},
        "fast": {"method": "confidence_gated_taylor", "threshold": 0.02},
    },
)
