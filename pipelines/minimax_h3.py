"""MiniMax-H3 (text, images or references to video with sound): one sequence, guidance distilled.

Order of the tokens: text, given pictures, sound, video. Video, sound and given pictures are at
noise levels of their own in one call; the step is that of the video, whose tokens are the last.
"""

from collections.abc import Mapping
from typing import Any

import torch

from .adapter import (
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    packed_tokens,
)
from .grids import Grid


def _video_timestep(named: Mapping[str, Any]) -> Any:
    """Of the distinct timesteps in a call, that of its last token."""
    return named["timestep"][named["timestep_indices"][-1]]


def _sound_tokens(config: Any, named: Mapping[str, Any]) -> int:
    """Tokens of the sound, between text and video."""
    return named["audio_hidden_states"].shape[1]


def _grid(config: Any, shape: tuple[int, ...], named: Mapping[str, Any]) -> Grid | None:
    """Of the video, from the time and height of its tokens, which end the sequence.

    Those of given pictures are in front of the sound. Waits for the device, once per generation.
    """
    indices, places = (named[key].detach().cpu() for key in ("video_indices", "position_ids"))
    gaps = (indices.diff() != 1).nonzero()
    first = int(indices[gaps[-1] + 1]) if len(gaps) else int(indices[0])
    time, height = places[first:, 0], places[first:, 1]
    a_frame, a_row = time == time[0], height == height[0]
    count, columns = int(a_frame.sum()), int((a_frame & a_row).sum())
    if int(indices[-1]) + 1 != len(places) or len(time) % count or count % columns:
        return None
    # (each frame has a time of its own, and each row of it a height of its own)
    if len(torch.unique(time)) * count != len(time) or len(torch.unique(height)) * columns != count:
        return None
    return len(time) // count, count // columns, columns


ADAPTER = FamilyAdapter(
    name="minimax_h3",
    transformers=("MiniMaxH3Transformer3DModel",),
    blocks=(BlockContract("transformer_blocks", forecast_modules=("attn", "ff")),),
    attention=(AttentionContract("transformer_blocks", "attn"),),
    tokens=packed_tokens,
    grid_rule=_grid,
    extra_tokens=_sound_tokens,
    extra_in_front=True,
    text="front",
    timestep_of=_video_timestep,
    second_stream="audio_hidden_states",
    converted=lambda config: True,  # a scheduler of its own steps the sound
    presets=adaptive_presets(),
)
