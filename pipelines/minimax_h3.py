"""MiniMax-H3 (text, images or references to video with sound): one sequence, guidance distilled.

Order of the tokens: text, given pictures, sound, video. Video, sound and given pictures are at
noise levels of their own in one call; the step is that of the video, whose tokens are the last.
"""

from collections.abc import Mapping
from typing import Any

from .adapter import (
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    packed_tokens,
)


def _video_timestep(named: Mapping[str, Any]) -> Any:
    """Of the distinct timesteps in a call, that of its last token."""
    return named["timestep"][named["timestep_indices"][-1]]


def _sound_tokens(config: Any, named: Mapping[str, Any]) -> int:
    """Tokens of the sound, between text and video."""
    return named["audio_hidden_states"].shape[1]


ADAPTER = FamilyAdapter(
    name="minimax_h3",
    transformers=("MiniMaxH3Transformer3DModel",),
    blocks=(BlockContract("transformer_blocks", forecast_modules=("attn", "ff")),),
    attention=(AttentionContract("transformer_blocks", "attn"),),
    tokens=packed_tokens,
    extra_tokens=_sound_tokens,
    extra_in_front=True,
    text="front",
    timestep_of=_video_timestep,
    second_stream="audio_hidden_states",
    converted=lambda config: True,  # a scheduler of its own steps the sound
    presets=adaptive_presets(),
)
