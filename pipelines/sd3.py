"""Stable Diffusion 3 and 3.5 (text to image): joint attention, text behind the image."""

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets, patch_tokens

ADAPTER = FamilyAdapter(
    name="sd3",
    transformers=("SD3Transformer2DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            encoder="encoder_hidden_states",
            returns=("encoder", "hidden"),
            forecast_modules=("attn", "attn2", "ff", "ff_context"),
            cross=(),
            token_axes={},
        ),
    ),
    attention=(
        AttentionContract("transformer_blocks", "attn"),
        # 3.5 medium: image tokens alone, beside the joint attention
        AttentionContract("transformer_blocks", "attn2"),
    ),
    tokens=patch_tokens,
    text="back",
    guidance="batched",
    presets=adaptive_presets(),
)
