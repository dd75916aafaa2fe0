"""OmniGen (text and images to image): one sequence of text, time and image, guidance batched."""

from .adapter import BlockContract, FamilyAdapter, adaptive_presets, patch_tokens

ADAPTER = FamilyAdapter(
    name="omnigen",
    transformers=("OmniGenTransformer2DModel",),
    blocks=(BlockContract("layers", forecast_modules=("self_attn", "mlp")),),
    no_attention_because="its text tokens see only what is before them, and "
    "tile maps have no mask for that",
    tokens=patch_tokens,
    text="front",
    guidance="batched",
    presets=adaptive_presets(),
)
