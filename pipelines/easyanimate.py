"""EasyAnimate (text, image or control to video): joint attention, text in front."""

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets, patch_tokens

ADAPTER = FamilyAdapter(
    name="easyanimate",
    transformers=("EasyAnimateTransformer3DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            encoder="encoder_hidden_states",
            returns=("hidden", "encoder"),
            forecast_modules=("attn1", "ff", "txt_ff"),
        ),
    ),
    attention=(AttentionContract("transformer_blocks"),),
    tokens=patch_tokens,
    text="front",
    guidance="batched",
    presets=adaptive_presets(),
)
