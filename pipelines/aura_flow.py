"""AuraFlow (text to image): four joint blocks, then single blocks on one sequence, batched."""

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets, patch_tokens

ADAPTER = FamilyAdapter(
    name="aura_flow",
    transformers=("AuraFlowTransformer2DModel",),
    blocks=(
        BlockContract(
            "joint_transformer_blocks",
            encoder="encoder_hidden_states",
            returns=("encoder", "hidden"),
            forecast_modules=("attn", "ff", "ff_context"),
        ),
        BlockContract(
            "single_transformer_blocks", joint_text="front", forecast_modules=("attn", "ff")
        ),
    ),
    attention=(
        AttentionContract("joint_transformer_blocks", "attn"),
        AttentionContract("single_transformer_blocks", "attn"),
    ),
    tokens=patch_tokens,
    text="front",  # eight register tokens among it
    guidance="batched",
    presets=adaptive_presets(),
)
