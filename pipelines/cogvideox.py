"""CogVideoX (text, image or video to video): joint attention, text in front, guidance batched."""

import math
from typing import Any

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets
from .grids import frames_first


def _tokens(config: Any, shape: tuple[int, ...]) -> int:
    """Video tokens; the latents are `(B, F, C, H, W)`."""
    return math.prod(frames_first(config, shape, {}))


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
    grid_rule=frames_first,
    text="front",
    embedding="time_embedding",
    guidance="batched",
    presets=adaptive_presets(),
)
