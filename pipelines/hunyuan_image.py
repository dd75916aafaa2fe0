"""HunyuanImage 2.1 (text to image, refiner): text behind the image, guidance by a guider."""

from .adapter import (
    BY_DIFFERENCE,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    patch_tokens,
)

_RETURNS = ("hidden", "encoder")

ADAPTER = FamilyAdapter(
    name="hunyuan_image",
    transformers=("HunyuanImageTransformer2DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            encoder="encoder_hidden_states",
            returns=_RETURNS,
            forecast_modules=("attn", "ff", "ff_context"),
        ),
        BlockContract(
            "single_transformer_blocks",
            encoder="encoder_hidden_states",
            returns=_RETURNS,
            forecast_modules=("proj_out",),
            idle_modules=("attn", "proj_mlp"),
        ),
    ),
    attention=(
        AttentionContract("transformer_blocks", "attn"),
        AttentionContract("single_transformer_blocks", "attn"),
    ),
    tokens=patch_tokens,
    text="back",
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
