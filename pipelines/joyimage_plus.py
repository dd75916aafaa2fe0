"""JoyImage Edit Plus (editing with several images of any size): patches of all images in a row.

Text is behind them; shorter rows of a batch are padded, which a mask takes out of the attention.
"""

from .adapter import (
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    packed_tokens,
)

ADAPTER = FamilyAdapter(
    name="joyimage_plus",
    transformers=("JoyImageEditPlusTransformer3DModel",),
    blocks=(
        BlockContract(
            "double_blocks",
            encoder="encoder_hidden_states",
            returns=("hidden", "encoder"),
            forecast_modules=("attn", "img_mlp", "txt_mlp"),
            modulation="img_norm1",
        ),
    ),
    attention=(AttentionContract("double_blocks", "attn"),),
    tokens=packed_tokens,
    text="back",
    guidance="batched",
    presets=adaptive_presets(),
)
