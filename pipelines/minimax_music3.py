"""MiniMax Music 3 (text to music, window by window): a token of time in front, no guidance batch.

Each window is a generation of its own. Timesteps rise from 0 (noise) to 1.
"""

from typing import Any

from .adapter import (
    BY_DIFFERENCE,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
)


def _tokens(config: Any, shape: tuple[int, ...]) -> int:
    """Audio tokens; the latents are `(B, C, L)`."""
    return shape[2]


ADAPTER = FamilyAdapter(
    name="minimax_music3",
    transformers=("MiniMaxMusic3Transformer1DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks", forecast_modules=("attn", "ff_out"), idle_modules=("ff_in",)
        ),
    ),
    attention=(AttentionContract("transformer_blocks", "attn"),),
    tokens=_tokens,
    text="front",  # the token of time
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
