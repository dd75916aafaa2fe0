"""Stable Audio 3 (text or audio to audio): memory tokens in front, guidance batched.

Each of its attention layers subtracts one attention from another (differential attention).
"""

from typing import Any

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets


def _tokens(config: Any, shape: tuple[int, ...]) -> int:
    """Audio tokens; the latents are `(B, C, L)`."""
    return shape[2] // config.patch_size


ADAPTER = FamilyAdapter(
    name="stable_audio3",
    transformers=("StableAudio3DiTModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            forecast_modules=("self_attn", "cross_attn", "ff"),
            cross=("cross_attn",),
            modulation="pre_norm",
        ),
    ),
    attention=(AttentionContract("transformer_blocks", "self_attn"),),
    tokens=_tokens,
    text="front",  # memory tokens
    guidance="batched",
    presets=adaptive_presets(),
)
