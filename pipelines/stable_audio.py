"""Stable Audio (text to audio): a global token in front, text by cross-attention, batched."""

from typing import Any

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets


def _tokens(config: Any, shape: tuple[int, ...]) -> int:
    """Audio tokens; the latents are `(B, C, L)`."""
    return shape[2]


ADAPTER = FamilyAdapter(
    name="stable_audio",
    transformers=("StableAudioDiTModel",),
    blocks=(BlockContract("transformer_blocks", forecast_modules=("attn1", "attn2", "ff")),),
    attention=(AttentionContract("transformer_blocks"),),
    tokens=_tokens,
    text="front",  # the global token
    preconditioned=True,  # by its schedulers
    guidance="batched",
    presets=adaptive_presets(),
)
