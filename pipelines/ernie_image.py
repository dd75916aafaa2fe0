"""ERNIE-Image (text to image): one sequence of image and text, guidance batched.

Its blocks take and return tokens as `(L, B, C)`.
"""

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets, patch_tokens

ADAPTER = FamilyAdapter(
    name="ernie_image",
    transformers=("ErnieImageTransformer2DModel",),
    blocks=(BlockContract("layers", hidden="x", forecast_modules=("self_attention", "mlp")),),
    attention=(AttentionContract("layers", "self_attention"),),
    tokens=patch_tokens,
    text="back",
    guidance="batched",
    presets=adaptive_presets(),
)
