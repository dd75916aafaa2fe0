"""PRX (text to image, in latents or pixels): text as further keys, guidance batched."""

from .adapter import BlockContract, FamilyAdapter, adaptive_presets, patch_tokens

ADAPTER = FamilyAdapter(
    name="prx",
    transformers=("PRXTransformer2DModel",),
    # The MLP is no module of its own: its output is that of its last projection.
    blocks=(
        BlockContract(
            "blocks",
            forecast_modules=("attention", "down_proj"),
            idle_modules=("gate_proj", "up_proj"),
        ),
    ),
    no_attention_because="its text tokens are keys without queries, and "
    "tile maps need as many queries as keys",
    tokens=patch_tokens,
    # from pixels it predicts the picture, of which the pipeline makes a velocity
    converted=lambda config: config.in_channels == 3,
    guidance="batched",
    presets=adaptive_presets(),
)
