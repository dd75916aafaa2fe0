"""Kandinsky 6 SR (a video made larger, tile by tile): each tile is a generation of its own."""

from .adapter import BlockContract, FamilyAdapter, adaptive_presets

ADAPTER = FamilyAdapter(
    name="kandinsky6_sr",
    transformers=("Kandinsky6SRTransformer3DModel",),
    blocks=(
        BlockContract(
            "visual_transformer_blocks",
            forecast_modules=("self_attention", "feed_forward"),
            modulation="self_attention_norm",
        ),
    ),
    no_attention_because="its self-attention is sparse by itself (NABLA): "
    "it was trained with a map of its own",
    presets=adaptive_presets(),
)
