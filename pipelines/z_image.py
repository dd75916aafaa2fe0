"""Z-Image (text to image): latents as a list, one sequence of image and text, guidance batched.

Image and text are each padded to a multiple of 32 tokens. Refiners before the layers always run.
"""

from typing import Any

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets

_MULTIPLE = 32


def _tokens(config: Any, shape: tuple[int, ...]) -> int:
    """Image tokens and their padding; the latents are `(B, C, F, H, W)`."""
    patch, frames = config.all_patch_size[0], config.all_f_patch_size[0]
    tokens = (shape[2] // frames) * (shape[3] // patch) * (shape[4] // patch)
    return -(-tokens // _MULTIPLE) * _MULTIPLE


ADAPTER = FamilyAdapter(
    name="z_image",
    transformers=("ZImageTransformer2DModel",),
    blocks=(BlockContract("layers", hidden="x", forecast_modules=("attention", "feed_forward")),),
    attention=(AttentionContract("layers", "attention"),),
    tokens=_tokens,
    text="back",
    timestep="t",
    sample="x",
    guidance="batched",
    presets=adaptive_presets(),
)
