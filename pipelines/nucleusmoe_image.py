"""Nucleus-Image (text to image, mixture of experts): text as further keys, guidance in two calls.

Which tokens an expert takes depends on all tokens of the layer, in computed steps alone.
"""

from .adapter import (
    BY_DIFFERENCE,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    packed_tokens,
)

ADAPTER = FamilyAdapter(
    name="nucleusmoe_image",
    transformers=("NucleusMoEImageTransformer2DModel",),
    blocks=(BlockContract("transformer_blocks", forecast_modules=("attn", "img_mlp")),),
    no_attention_because="its text tokens are keys without queries, and "
    "tile maps need as many queries as keys",
    tokens=packed_tokens,
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
