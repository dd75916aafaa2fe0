"""Qwen-Image (text to image, editing): joint attention, text in front."""

from .adapter import AttentionContract, BlockContract, FamilyAdapter, packed_tokens

ADAPTER = FamilyAdapter(
    name="qwen_image",
    transformers=("QwenImageTransformer2DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            encoder="encoder_hidden_states",
            returns=("encoder", "hidden"),
            forecast_modules=("attn", "img_mlp", "txt_mlp"),
        ),
    ),
    attention=(AttentionContract("transformer_blocks", "attn"),),
    tokens=packed_tokens,
    text="front",
    presets={
        "safe": {
            "method": "adaptive_taylor",
            "tolerance": 0.003,
            "warmup": 5,
            "guidance": "difference",
        },
        "balanced": {
            "method": "adaptive_taylor",
            "tolerance": 0.01,
            "warmup": 5,
            "guidance": "difference",
        },
        "fast": {
            "method": "adaptive_taylor",
            "tolerance": 0.03,
            "warmup": 5,
            "guidance": "difference",
        },
    },
)
