"""CogVideoX (text, image or video to video): joint attention, text in front, guidance batched."""

from typing import Any

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets
from .grids import frames_first


def _tokens(config: Any, shape: tuple[int, ...]) -> int:
    """Video tokens; the latents are `(B, F, C, H, W)`."""
    frames = shape[1] // (config.patch_size_t or 1)
    return frames * (shape[3] // config.patch_size) * (shape[4] // config.patch_size)


ADAPTER = FamilyAdapter(
    name="cogvideox",
    transformers=("CogVideoXTransformer3DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            encoder="encoder_hidden_states",
            returns=("hidden", "encoder"),
            forecast_modules=("attn1", "ff"),
        ),
    ),
    attention=(AttentionContract("transformer_blocks"),),
    tokens=_tokens,
    place=frames_first,
    text="front",
    guidance="batched",
    presets=adaptive_presets(),
)
