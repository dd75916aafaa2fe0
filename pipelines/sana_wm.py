"""SANA-WM (image and camera path to video): linear self-attention in most blocks, batched.

The given image is the first frame, whose timestep is 0.
"""

from .adapter import BlockContract, FamilyAdapter, adaptive_presets, patch_tokens

ADAPTER = FamilyAdapter(
    name="sana_wm",
    transformers=("SanaWMTransformer3DModel",),
    blocks=(BlockContract("blocks", hidden="x", forecast_modules=("attn", "cross_attn", "mlp")),),
    no_attention_because="most of its self-attention is linear: "
    "there is no attention matrix to skip tiles of",
    tokens=patch_tokens,
    guidance="batched",
    presets=adaptive_presets(),
)
