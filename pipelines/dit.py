"""DiT (class-conditional images, `DiTPipeline`): guidance batched in one call, no cache context."""

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets, patch_tokens

ADAPTER = FamilyAdapter(
    name="dit",
    transformers=("DiTTransformer2DModel",),
    blocks=(BlockContract("transformer_blocks", forecast_modules=("attn1", "ff"), token_axes={}),),
    attention=(AttentionContract("transformer_blocks"),),
    tokens=patch_tokens,
    guidance="batched",
    presets={
        **adaptive_presets(),
    },
)
